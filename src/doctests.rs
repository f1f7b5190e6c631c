//! The Rust code in the guide, in README.md and in `workers/README.md`, which `cargo test` compiles as it
//! stands there. It is no part of the library.

macro_rules! pages {
    ($($page:ident = $path:literal;)+) => {
        $(
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
    Rpc = "docs/src/rpc.md";
    Jobs = "docs/src/jobs.md";
    Exec = "docs/src/exec.md";
    TestKit = "docs/src/test-kit.md";
    FromProcessHandler = "docs/src/migrating-from-processhandler.md";
}
