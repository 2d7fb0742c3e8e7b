//! An autorelease pool around what a child runs; elsewhere than on Apple's systems nothing.
//!
//! A child's engine is on one thread for its whole life, and a thread that nobody gives a pool keeps
//! what Objective-C releases later until it ends.

/// Runs `body` inside a pool of its own, which a panic drains, too.
pub(crate) fn autorelease<R>(body: impl FnOnce() -> R) -> R {
    #[cfg(target_vendor = "apple")]
    return objc2::rc::autoreleasepool(|_| body());
    #[cfg(not(target_vendor = "apple"))]
    body()
}
