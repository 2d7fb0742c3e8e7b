//! An autorelease pool around what a worker runs, for `ExecutorConfig::around`.

/// Calls `body` inside an autorelease pool of its own, where the feature `metal` is on and there is
/// Objective-C; elsewhere just calls it.
///
/// A worker that nobody gives a pool keeps what Metal autoreleases until its thread ends: candle
/// grows a little with each operation.
///
/// ```
/// use onelane::{DeviceExecutor, ExecutorConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = ExecutorConfig::new("doc-pool").around(onelane_engines::autorelease_pool);
/// assert_eq!(DeviceExecutor::new(config)?.call(|| 6 * 7)?, 42);
/// # Ok(())
/// # }
/// ```
pub fn autorelease_pool(body: &mut dyn FnMut()) {
    #[cfg(all(feature = "metal", target_vendor = "apple"))]
    objc2::rc::autoreleasepool(|_| body());
    #[cfg(not(all(feature = "metal", target_vendor = "apple")))]
    body();
}
