// On Apple the same text, for build systems that want Objective-C++ here.
#include "MPSBatchQueue.cpp"
