// PyTorch for Linux is built without MPS: it has no device guard for tensors of that type. This one does
// nothing; streams and events are the simulated device's.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
C10_REGISTER_GUARD_IMPL(MPS, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::MPS>)
}
