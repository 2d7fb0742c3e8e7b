//! Help texts and messages of the real binary, word for word. `TRYCMD=overwrite cargo test` writes
//! them anew.

#[test]
fn help_and_messages() {
    trycmd::TestCases::new().case("tests/cmd/*.trycmd");
}
