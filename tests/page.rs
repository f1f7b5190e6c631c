//! The master's page in a real browser: `tests/browser/page.test.js`, which Node runs.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::Path;
use std::process::{Command, Stdio};

/// Where Chromium may be; `CHROMIUM` names another one.
const BROWSERS: [&str; 3] =
    ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/// Returns what the tests need and this machine lacks.
fn missing(dir: &Path) -> Option<&'static str> {
    let node = Command::new("node").arg("--version").stdout(Stdio::null()).status();
    if !node.is_ok_and(|status| status.success()) {
        return Some("node");
    }
    let browser = std::env::var_os("CHROMIUM");
    if browser.is_none() && !BROWSERS.iter().any(|path| Path::new(path).exists()) {
        return Some("chromium");
    }
    let packages = ["playwright-core", "axe-core"];
    let installed = packages.iter().all(|name| dir.join("node_modules").join(name).exists());
    (!installed).then_some("what `npm ci` installs in tests/browser")
}

#[test]
#[ignore = "slow"]
fn page_in_a_browser() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    if let Some(missing) = missing(&dir) {
        eprintln!("skipped: there is no {missing}");
        return;
    }
    let mut node = Command::new("node");
    node.args(["--test", "--test-reporter=spec", "page.test.js"]).current_dir(&dir);
    let output = node.env("OSTLER_PROGRAM", env!("CARGO_BIN_EXE_ostler")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{text}");
}
