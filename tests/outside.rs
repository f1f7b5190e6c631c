//! Compiles the built-in classes as a foreign crate, with the public contract alone.

#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../workers/mod.rs"]
mod workers;

#[test]
#[cfg(all(feature = "tokio", feature = "uring"))]
fn built_in_classes_register_through_the_public_api() {
    let mut registry = ostler::worker::Registry::default();
    workers::install(&mut registry).expect("the names differ");
    assert_eq!(
        registry.names().collect::<Vec<_>>(),
        ["exec", "mio", "sync", "threads", "tokio", "uring"]
    );
}

#[test]
#[cfg(all(feature = "tokio", feature = "uring"))]
fn runtime_has_the_same_classes() {
    let names: Vec<_> = ostler::Runtime::new().class_names().collect();
    assert_eq!(names, ["exec", "mio", "sync", "threads", "tokio", "uring"]);
}
