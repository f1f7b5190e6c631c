//! Tests whether the class `solo` fulfils every rule of the contract between runtime and class.

use ostler::testkit::ContractTest;

const PROGRAM: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));

#[test]
fn solo_fulfils_its_contract() {
    // The app `demo` has the paths that the test needs: quick ones, slow ones, one that hangs.
    let test = ContractTest::new(PROGRAM).class("solo").argument("demo");
    test.run().assert_passed();
}
