//! `include/onelane.h` is what the crate says.

use std::path::Path;

#[test]
fn the_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/status.rs"))
        .with_src(root.join("src/handles.rs"))
        .with_src(root.join("src/error.rs"))
        .with_src(root.join("src/stats.rs"))
        .with_src(root.join("src/engine.rs"))
        .with_src(root.join("src/executor.rs"))
        .with_src(root.join("src/api.rs"))
        .with_src(root.join("src/exports.rs"))
        .generate()
        .expect("the crate parses")
        .write(&mut made);
    let made = String::from_utf8(made).expect("a header is text");
    let path = root.join("include/onelane.h");
    if std::env::var_os("ONELANE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("the header can be written");
    }
    let committed = std::fs::read_to_string(&path).expect("the header is there");
    assert!(
        made == committed,
        "include/onelane.h is not current: run the test with ONELANE_WRITE_HEADER=1"
    );
}
