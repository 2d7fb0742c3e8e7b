//! An autorelease pool around what a worker runs; elsewhere than on Apple's systems nothing.
//!
//! The two functions of the Objective-C runtime are looked up by name when they are first wanted, so
//! that the module links without that library: a wheel for macOS is built on Linux, too.

/// Calls `body` inside a pool of its own.
#[cfg(target_vendor = "apple")]
pub(crate) fn autorelease(body: &mut dyn FnMut()) {
    let Some(runtime) = apple::runtime() else { return body() };
    let _pool = apple::Pool::push(runtime);
    body();
}

/// Calls `body`.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn autorelease(body: &mut dyn FnMut()) {
    body();
}

#[cfg(target_vendor = "apple")]
#[allow(unsafe_code, reason = "pools are the Objective-C runtime's")]
mod apple {
    use std::ffi::{CStr, c_char, c_int, c_void};
    use std::marker::PhantomData;
    use std::sync::OnceLock;

    unsafe extern "C" {
        fn dlopen(path: *const c_char, mode: c_int) -> *mut c_void;
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    const RTLD_LAZY: c_int = 1;

    /// The two functions of the runtime.
    #[derive(Clone, Copy)]
    pub(super) struct Runtime {
        push: unsafe extern "C" fn() -> *mut c_void,
        pop: unsafe extern "C" fn(*mut c_void),
    }

    /// Returns the runtime's functions, or `None` if there is no such library.
    pub(super) fn runtime() -> Option<Runtime> {
        static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
        *RUNTIME.get_or_init(load)
    }

    fn load() -> Option<Runtime> {
        // SAFETY: the path is a text that ends in zero. The library is never closed.
        let library = unsafe { dlopen(c"/usr/lib/libobjc.A.dylib".as_ptr(), RTLD_LAZY) };
        if library.is_null() {
            return None;
        }
        let push = find(library, c"objc_autoreleasePoolPush")?;
        let pop = find(library, c"objc_autoreleasePoolPop")?;
        // SAFETY: these functions of the runtime have these signatures, in clang's documentation of
        // automatic reference counting, and they are never unloaded.
        unsafe {
            Some(Runtime {
                push: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *mut c_void>(
                    push,
                ),
                pop: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(pop),
            })
        }
    }

    fn find(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the library is open, and the name ends in zero.
        let found = unsafe { dlsym(library, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }

    /// A pool of the calling thread, drained when it is dropped, by a panic, too. It stays on the
    /// thread: a pool is popped where it was pushed.
    pub(super) struct Pool {
        runtime: Runtime,
        token: *mut c_void,
        _stays: PhantomData<*const ()>,
    }

    impl Pool {
        pub(super) fn push(runtime: Runtime) -> Self {
            // SAFETY: any thread may push a pool.
            let token = unsafe { (runtime.push)() };
            Self { runtime, token, _stays: PhantomData }
        }
    }

    impl Drop for Pool {
        fn drop(&mut self) {
            // SAFETY: the token is of a push on this thread, popped once; pools that were pushed
            // after it are popped with it.
            unsafe { (self.runtime.pop)(self.token) }
        }
    }
}
