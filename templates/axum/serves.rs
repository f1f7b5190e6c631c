//! Starts the program, and tests that it drains, recovers from hangs and stops.

use ostler::testkit::{ContractTest, Http, Rule};

const PROGRAM: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));

#[test]
fn service_recovers_from_a_hang_and_stops() {
    let http = Http::new().quick("/pid").hang("/hang");
    let rules = [Rule::Ready, Rule::Work, Rule::Hang, Rule::IdleClients];
    ContractTest::new(PROGRAM)
        .class("tokio")
        .workload(http)
        .only(rules)
        .run()
        .assert_passed();
}
