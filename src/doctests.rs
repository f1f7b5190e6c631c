//! Compiles the Rust code in the guide, README.md and `workers/README.md` as documentation tests.
//! It exists only while rustdoc runs these tests.

macro_rules! pages {
    ($($(#[$attribute:meta])? $page:ident = $path:literal;)+) => {
        $(
            $(#[$attribute])?
            #[doc = include_str!(concat!("../", $path))]
            struct $page;
        )+
    };
}

pages! {
    Readme = "README.md";
    WorkersReadme = "workers/README.md";
    Apps = "docs/src/apps.md";
    WritingAWorkerClass = "docs/src/writing-a-worker-class.md";
    #[cfg(feature = "rpc")]
    Rpc = "docs/src/rpc.md";
    #[cfg(feature = "jobs")]
    Jobs = "docs/src/jobs.md";
    Exec = "docs/src/exec.md";
    #[cfg(feature = "tokio")]
    Tokio = "docs/src/tokio.md";
    Scaling = "docs/src/scaling.md";
    #[cfg(feature = "testkit")]
    TestKit = "docs/src/test-kit.md";
    #[cfg(feature = "jobs")]
    FromProcessHandler = "docs/src/migrating-from-processhandler.md";
}
