//! How an observed exit is classified, and what follows from it.

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use super::*;

fn any_observation() -> impl Strategy<Value = ExitObservation> {
    let exit = prop_oneof![
        Just(ProcessExit::Code(0)),
        any::<i32>().prop_map(ProcessExit::Code),
        Just(ProcessExit::TerminationSignal),
        Just(ProcessExit::FaultSignal),
    ];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (exit, flags).prop_map(|(exit, (was_draining, killed_by_master, oom_kill, has_worked))| {
        ExitObservation { exit, was_draining, killed_by_master, oom_kill, has_worked }
    })
}

/// An exit of a worker that the scoreboard shows as ready.
fn unprompted(exit: ProcessExit) -> ExitObservation {
    ExitObservation { exit, ..observation(ExitClass::Crashed) }
}

fn classify(observation: ExitObservation) -> ExitClass {
    ExitClass::from(observation)
}

#[test]
fn exit_code_0_is_requested_only_while_draining() {
    let exit = unprompted(ProcessExit::Code(0));
    assert_eq!(classify(exit), ExitClass::Crashed);
    let drained = ExitObservation { was_draining: true, ..exit };
    assert_eq!(classify(drained), ExitClass::Requested);
    let failed = ExitObservation { exit: ProcessExit::Code(1), ..drained };
    assert_eq!(classify(failed), ExitClass::Crashed);
}

#[test]
fn termination_signal_is_killed_externally() {
    let exit = unprompted(ProcessExit::TerminationSignal);
    assert_eq!(classify(exit), ExitClass::KilledExternally);
    let drained = ExitObservation { was_draining: true, ..exit };
    assert_eq!(classify(drained), ExitClass::KilledExternally);
}

#[test]
fn termination_signal_of_the_master_is_crashed() {
    let exit = unprompted(ProcessExit::TerminationSignal);
    let killed = ExitObservation { killed_by_master: true, ..exit };
    assert_eq!(classify(killed), ExitClass::Crashed);
}

#[test]
fn fault_signal_is_crashed() {
    assert_eq!(classify(unprompted(ProcessExit::FaultSignal)), ExitClass::Crashed);
}

#[test]
fn oom_kill_is_oom_killed() {
    let exit = unprompted(ProcessExit::TerminationSignal);
    let oom_killed = ExitObservation { oom_kill: true, ..exit };
    assert_eq!(classify(oom_killed), ExitClass::OomKilled);
}

#[test]
fn exit_of_a_ready_worker_backs_off_by_its_class() {
    let crash = (ExitReason::Crashed, false);
    let external_kill = (ExitReason::Crashed, true);
    let cases = [
        (ProcessExit::Code(0), crash),
        (ProcessExit::Code(3), crash),
        (ProcessExit::FaultSignal, crash),
        (ProcessExit::TerminationSignal, external_kill),
    ];
    for (exit, expected) in cases {
        let mut pool = Pool::serving(POLICY, 1);
        let report = pool.exits_as(1, unprompted(exit));
        let is_immediate = report.restart_in == Some(Duration::ZERO);
        assert_eq!((report.reason, is_immediate), expected, "{exit:?}");
    }
}

#[test]
fn overlong_core_dump_killed_by_master_fails_the_reload() {
    let mut pool = Pool::serving(Policy { boot_timeout: Duration::ZERO, ..POLICY }, 2);
    pool.supervisor.reload(POLICY, 2);
    pool.step();
    pool.become_ready(3);
    pool.step();
    assert!(pool.supervisor.on_core_dump(WorkerId(3), pool.now));
    pool.step();
    pool.become_ready(5);
    pool.become_ready(4);
    pool.now = pool.now.saturating_add(CORE_DUMP_TIMEOUT);
    let exit = unprompted(ProcessExit::TerminationSignal);
    let report = pool.exits_as(3, ExitObservation { killed_by_master: true, ..exit });
    assert_eq!(report.reason, ExitReason::Crashed);
    pool.step_to_roll_back();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The class alone never changes why a worker exits that the master has told to.
    #[test]
    fn exit_reason_random_observation_fits_the_state(observation in any_observation()) {
        let oom_or = |other| if observation.oom_kill { ExitReason::OomKilled } else { other };

        let mut booting = Pool::new(POLICY, 1);
        booting.step();
        assert_eq!(booting.exits_as(1, observation).reason, ExitReason::BootFailed);

        let mut ready = Pool::serving(POLICY, 1);
        let is_requested =
            observation.exit == ProcessExit::Code(0) && observation.was_draining;
        let expected = if is_requested { ExitReason::Requested } else { ExitReason::Crashed };
        assert_eq!(ready.exits_as(1, observation).reason, oom_or(expected));

        let mut draining = Pool::serving(POLICY, 2);
        draining.supervisor.scale_to(1);
        draining.step();
        assert_eq!(draining.exits_as(2, observation).reason, oom_or(ExitReason::ScaledDown));

        let mut aborting = Pool::serving(POLICY, 1);
        aborting.silent.insert(WorkerId(1));
        aborting.pass(POLICY.timeout);
        assert_eq!(aborting.exits_as(1, observation).reason, ExitReason::Hung);
    }
}
