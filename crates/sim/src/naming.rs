//! The name under which an unattached real thread is known to simulated devices.

use std::cell::RefCell;

thread_local! {
    static NAME: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Names the calling real thread for the devices that it has not used yet, unattached; without, the
/// name that Rust knows it by. For threads that Rust did not start.
pub fn name_thread(name: &str) {
    // In a thread's last moments there is nothing left to name.
    let _ = NAME.try_with(|own| *own.borrow_mut() = Some(name.to_owned()));
}

/// The calling thread's name.
pub(crate) fn name() -> String {
    let given = NAME.try_with(|own| own.borrow().clone()).ok().flatten();
    given.unwrap_or_else(|| std::thread::current().name().unwrap_or("unnamed").to_owned())
}
