//! One owner of a device in a process that has two copies of the core: libonelane and the Python
//! package.
//!
//! The Python package's own code uses its copy, so its copy is the owner wherever it is loaded:
//! libonelane, when it is first used, looks for it and then passes every call on. If libonelane has
//! been used before the package is loaded, the package refuses to be ([`other_owner`]). Objects are
//! found by looking through what the process has loaded, since Python loads modules out of sight of
//! plain symbol look-up.

use std::ffi::{CStr, CString, c_void};
#[cfg(feature = "exports")]
use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};

use crate::api::{Api, own_api};

/// The symbol of the Python package: gives its table, or NULL for a version that it does not know.
#[cfg(feature = "wheel")]
#[unsafe(no_mangle)]
pub extern "C" fn onelane_wheel_api(version: u32) -> *const Api {
    if version == crate::api::ONELANE_API_VERSION { own_api() } else { std::ptr::null() }
}

/// Whether this copy, being libonelane, owns the devices of this process.
#[cfg(feature = "exports")]
static IS_OWNER: AtomicBool = AtomicBool::new(false);

/// The symbol of libonelane: whether it was used before a Python package was there.
#[cfg(feature = "exports")]
#[unsafe(no_mangle)]
pub extern "C" fn onelane_is_owner() -> bool {
    IS_OWNER.load(Ordering::Acquire)
}

/// The table that this copy's functions go through; `None` if the process has another owner, of
/// another version.
#[cfg(feature = "exports")]
pub(crate) fn resolve(version: u32) -> Option<&'static Api> {
    static RESOLVED: OnceLock<Option<&'static Api>> = OnceLock::new();
    *RESOLVED.get_or_init(|| {
        type WheelApi = extern "C" fn(u32) -> *const Api;
        let wheel = find("_onelane.", c"onelane_wheel_api");
        let Some(wheel) = wheel else {
            IS_OWNER.store(true, Ordering::Release);
            return Some(own_api());
        };
        // SAFETY: that symbol is this function in every version of the package.
        let wheel: WheelApi = unsafe { std::mem::transmute::<*mut c_void, WheelApi>(wheel) };
        // SAFETY: it gives NULL or its table of this version, and is never unloaded.
        unsafe { wheel(version).as_ref() }
    })
}

/// For the Python package: whether a libonelane in this process is an owner already.
pub fn other_owner() -> bool {
    type IsOwner = extern "C" fn() -> bool;
    let Some(symbol) = find("libonelane", c"onelane_is_owner") else { return false };
    // SAFETY: that symbol is this function in every version of the library.
    let is_owner: IsOwner = unsafe { std::mem::transmute::<*mut c_void, IsOwner>(symbol) };
    is_owner()
}

/// A symbol of the first loaded object whose file name begins so, or of any that is in plain sight.
fn find(file: &str, symbol: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name is a C string.
    let seen = unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) };
    if !seen.is_null() && !is_own(seen) {
        return Some(seen);
    }
    loaded().into_iter().filter(|path| is_named(path, file)).find_map(|path| {
        // SAFETY: the path is a C string; the object is loaded already, so nothing of it is run.
        let object = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if object.is_null() {
            return None;
        }
        // SAFETY: the object was just opened. It stays open, since its symbol is used from now on.
        let found = unsafe { libc::dlsym(object, symbol.as_ptr()) };
        (!found.is_null() && !is_own(found)).then_some(found)
    })
}

/// Whether a symbol is of this very copy.
fn is_own(symbol: *mut c_void) -> bool {
    #[cfg(feature = "wheel")]
    if symbol.addr() == onelane_wheel_api as *const () as usize {
        return true;
    }
    #[cfg(feature = "exports")]
    if symbol.addr() == onelane_is_owner as *const () as usize {
        return true;
    }
    let _ = symbol;
    false
}

fn is_named(path: &CStr, file: &str) -> bool {
    let name = path.to_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name.starts_with(file.as_bytes())
}

#[cfg(not(any(target_os = "macos", target_os = "ios")))]
fn loaded() -> Vec<CString> {
    unsafe extern "C" fn add(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        paths: *mut c_void,
    ) -> libc::c_int {
        // SAFETY: `paths` is the vector below, and the loader passes a filled info.
        let (paths, info) = unsafe { (&mut *paths.cast::<Vec<CString>>(), &*info) };
        if !info.dlpi_name.is_null() {
            // SAFETY: the loader's names are C strings.
            paths.push(unsafe { CStr::from_ptr(info.dlpi_name) }.to_owned());
        }
        0
    }
    let mut paths = Vec::<CString>::new();
    // SAFETY: `add` is called during this call alone, with this vector.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut paths).cast()) };
    paths
}

#[cfg(any(target_os = "macos", target_os = "ios"))]
#[allow(deprecated, reason = "libc points to a crate that would be needed for these two alone")]
fn loaded() -> Vec<CString> {
    // SAFETY: these take no pointers; a name is NULL, if an object was unloaded meanwhile, or a C
    // string.
    unsafe {
        let names = (0..libc::_dyld_image_count()).map(|index| libc::_dyld_get_image_name(index));
        names.filter(|name| !name.is_null()).map(|name| CStr::from_ptr(name).to_owned()).collect()
    }
}
