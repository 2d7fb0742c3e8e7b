//! The name by which programs find the library: libonelane, with the ABI's version.
//!
//! Cargo hands these arguments on to a cdylib that depends on this crate. The Python module is one, built
//! without `exports`; under libonelane's name the loader would give it to programs that want libonelane.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_EXPORTS").is_none() {
        return;
    }
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    match os.as_str() {
        "macos" | "ios" => {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libonelane.1.dylib");
        }
        "windows" => {}
        _ => println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libonelane.so.1"),
    }
}
