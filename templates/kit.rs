//! The class `solo`, tried against every rule of the contract between the runtime and a class.

use ostler::testkit::Kit;

const PROGRAM: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));

#[test]
fn solo_keeps_its_contract() {
    // The app `demo` has paths that are quick, slow, or hang for good: what the kit asks for.
    let report = Kit::new(PROGRAM).class("solo").argument("demo").run();
    report.assert_passed();
}
