//! Help texts and messages of the real binary, word for word. `TRYCMD=overwrite cargo test` writes
//! them anew.

use std::path::Path;

#[test]
fn help_and_messages() {
    trycmd::TestCases::new()
        // A binary that is not known by its name would be left out without a word.
        .register_bin("onelane-bench", Path::new(env!("CARGO_BIN_EXE_onelane-bench")))
        .case("tests/cmd/*.trycmd");
}
