//! The entry point of a program: takes the command line and returns an exit code.

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use crate::app::App;
#[cfg(feature = "tokio")]
use crate::app::BootError;
use crate::arbiter::{ExecArgs, upgrade_channel};
use crate::cli::{self, Action, Invocation, Stream};
use crate::doctor;
use crate::listen::activation::LISTEN_FDS_VAR;
use crate::os::daemon;
use crate::os::fd_table::OpenFds;
use crate::os::foreground;
use crate::os::lookups::Lookups;
use crate::os::title::ProcTitle;
use crate::runtime::{Runtime, RuntimeError, StartupContext};
use crate::settings::{Configuration, json_schema};
use crate::systemd::NOTIFY_SOCKET;
use start_dir::{StartDir, start_link};

mod start_dir;

/// Runs a program with this app: handles command line, YAML files, signals and exit codes.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     ostler::main(ostler::apps::Echo)
/// }
/// ```
pub fn main(app: impl App + 'static) -> ExitCode {
    Runtime::new().app(app).main()
}

/// Runs a program whose app is made by an asynchronous function and served by the worker class `tokio`.
/// Does what [`tokio::App::new`](crate::tokio::App::new) and [`main`] do.
#[cfg(feature = "tokio")]
pub fn tokio_main<F, R, S, B>(name: impl Into<String>, boot: F) -> ExitCode
where
    F: Fn(crate::workers::tokio::Worker) -> R + Send + Sync + 'static,
    R: Future<Output = Result<S, BootError>> + 'static,
    S: tower_service::Service<
            http::Request<crate::workers::tokio::Body>,
            Response = http::Response<B>,
        > + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BootError>,
    B: http_body::Body + Send + 'static,
    B::Data: From<bytes::Bytes> + Send,
    B::Error: Into<BootError>,
{
    main(crate::workers::tokio::App::new(name, boot))
}

impl Runtime {
    /// Runs the program as the command line and environment of this process request. Returns the exit
    /// code: 0 stopped on request, 1 invalid configuration, address in use or pid file locked, 2
    /// invalid command line, 3 no worker became ready, 70 internal error.
    pub fn main(self) -> ExitCode {
        let args: Vec<_> = env::args_os().collect();
        let variables: Vec<_> = env::vars_os().collect();
        let context = StartupContext {
            program_fds: OpenFds::snapshot(),
            startup_notifier: None,
            exec_args: exec_args(&args),
            // Without /proc the process title cannot be set, but everything else works.
            title: ProcTitle::init().ok(),
        };
        let mut info =
            cli::ProgramInfo { after_help: self.after_help_text(), ..cli::ProgramInfo::default() };
        info.default_app = self.default_app_name().unwrap_or_default().to_owned();
        if let Some(class) = self.default_class_name() {
            info.default_class = class.to_owned();
        }
        match cli::parse(args, variables, info) {
            Ok(invocation) => ExitCode::from(self.dispatch(&invocation, context)),
            Err(exit) => {
                let code = match print(exit.stream, &exit.text) {
                    Ok(()) => exit.code,
                    Err(_) => 1,
                };
                ExitCode::from(code)
            }
        }
    }

    fn dispatch(&self, invocation: &Invocation, context: StartupContext) -> u8 {
        if invocation.action == Action::ListClasses {
            let names: Vec<_> = self.class_names().collect();
            return print_result(invocation.program(), &format!("{}\n", names.join("\n")));
        }
        if invocation.action == Action::PrintSchema {
            return print_result(invocation.program(), &format!("{:#}\n", json_schema()));
        }
        if let Action::Doctor { json } = invocation.action {
            let report = doctor::Report::new(self, invocation.load());
            let text = if json { report.to_json() } else { report.to_text() };
            return print_result(invocation.program(), &text).max(report.exit_code());
        }
        let print_warning = |warning: &str| {
            print_error(invocation.program(), warning);
        };
        let report_error = |error: &dyn std::fmt::Display| {
            upgrade_channel::report_failure(&error.to_string());
            print_error(invocation.program(), &error.to_string());
        };
        let (configuration, warnings) = match invocation.load() {
            Ok(loaded) => loaded,
            Err(error) => {
                report_error(&error);
                return error.exit_code();
            }
        };
        warnings.iter().for_each(|warning| print_warning(warning));
        if let Some(file) = configuration.master.file_without_keys() {
            if upgrade_channel::is_new_master() {
                // The old master may have read a complete file, and its sockets would be closed.
                report_error(&format!("{} sets no key: restore it, or restart", file.display()));
                return 1;
            }
            print_warning(&format!("{} sets no key", file.display()));
        }
        let result = match invocation.action {
            Action::Run if configuration.master.daemon && !upgrade_channel::is_new_master() => {
                return self.run_daemon(invocation, configuration, context);
            }
            Action::Run if configuration.master.daemon => {
                self.run_from_root_dir(invocation, configuration, context)
            }
            Action::Run if configuration.master.reload && has_foreground_parent() => {
                return self.run_below_parent(invocation, configuration, context);
            }
            Action::Run => self.run_from_start_dir(invocation, configuration, context),
            Action::CheckConfig => match self.check_start(&configuration) {
                Ok(warnings) => {
                    warnings.iter().for_each(|warning| print_warning(warning));
                    return print_result(invocation.program(), "configuration OK\n");
                }
                Err(error) => Err(error),
            },
            Action::PrintConfig => match self.finalize(configuration) {
                Ok(configuration) => {
                    return print_result(invocation.program(), &configuration.to_yaml());
                }
                Err(error) => Err(error),
            },
            Action::PrintChangedConfig => match self.finalize(configuration) {
                Ok(configuration) => {
                    let text = configuration.changes_to_yaml(&invocation.default_settings());
                    return print_result(invocation.program(), &text);
                }
                Err(error) => Err(error),
            },
            Action::ListClasses | Action::PrintSchema | Action::Doctor { .. } => Ok(()),
        };
        match result {
            Ok(()) => 0,
            Err(error) => {
                report_error(&error);
                error.exit_code()
            }
        }
    }

    /// Runs as a daemon. This process waits until the daemon is ready or has failed.
    fn run_daemon(
        &self,
        invocation: &Invocation,
        configuration: Configuration,
        context: StartupContext,
    ) -> u8 {
        let result = daemon::daemonize(|notifier| {
            let notifier = Rc::new(notifier);
            let context =
                StartupContext { startup_notifier: Some(Rc::clone(&notifier)), ..context };
            let result = self.run_from_root_dir(invocation, configuration, context);
            match result {
                Ok(()) => 0,
                Err(error) => {
                    notifier.notify(error.exit_code(), &error.to_string());
                    error.exit_code()
                }
            }
        });
        let (code, text) = match result {
            Ok(startup_result) => startup_result,
            Err(error) => (1, format!("failed to daemonize: {error}")),
        };
        if !text.is_empty() {
            print_error(invocation.program(), &text);
        }
        code
    }

    /// Runs in a child of this process, which waits for that master and for each that replaces it.
    fn run_below_parent(
        &self,
        invocation: &Invocation,
        configuration: Configuration,
        context: StartupContext,
    ) -> u8 {
        let run = || match self.run_from_start_dir(invocation, configuration, context) {
            Ok(()) => 0,
            Err(error) => {
                print_error(invocation.program(), &error.to_string());
                error.exit_code()
            }
        };
        let error = foreground::run_masters(run);
        print_error(invocation.program(), &format!("failed to start the master: {error}"));
        1
    }

    /// Runs as a daemon whose working directory is `/`. Relative paths start from the directory in which
    /// it was started.
    fn run_from_root_dir(
        &self,
        invocation: &Invocation,
        configuration: Configuration,
        context: StartupContext,
    ) -> Result<(), RuntimeError> {
        let start_dir = StartDir::find().map_err(RuntimeError::StartDir)?;
        let root = Path::new("/");
        env::set_current_dir(root).map_err(RuntimeError::Os)?;
        self.run_as(start_dir.absolute(configuration), context, |lookups| {
            start_dir.load(lookups, Some(root), || reload_config(invocation, lookups))
        })
    }

    /// Runs in the directory in which it was started. If the shell came there by a link, a reload follows it.
    fn run_from_start_dir(
        &self,
        invocation: &Invocation,
        configuration: Configuration,
        context: StartupContext,
    ) -> Result<(), RuntimeError> {
        match StartDir::find() {
            Ok(start_dir) if start_dir.is_linked() => {
                self.run_as(start_dir.absolute(configuration), context, |lookups| {
                    start_dir.load(lookups, None, || reload_config(invocation, lookups))
                })
            }
            Ok(_) | Err(_) => {
                self.run_as(configuration, context, |lookups| reload_config(invocation, lookups))
            }
        }
    }
}

/// Returns whether a program with `reload` runs the master in a child, so that the shell waits on over an
/// upgrade. A service manager expects the master itself, and follows an upgrade.
fn has_foreground_parent() -> bool {
    let is_managed = [NOTIFY_SOCKET, LISTEN_FDS_VAR].iter().any(|name| env::var_os(name).is_some());
    !is_managed && !upgrade_channel::is_new_master()
}

/// Loads the settings again. Warnings were printed at the start.
fn reload_config(invocation: &Invocation, lookups: &Lookups) -> Result<Configuration, String> {
    invocation
        .load_with(lookups)
        .map(|(configuration, _)| configuration)
        .map_err(|error| error.to_string())
}

/// Returns the arguments and the directory for starting this program again. Returns `None` if there
/// is no working directory.
fn exec_args(args: &[OsString]) -> Option<ExecArgs> {
    let argv = args.iter().map(|arg| CString::new(arg.as_bytes()));
    let args = argv.collect::<Result<Vec<_>, _>>().ok()?;
    let dir = File::open(".").ok()?.into();
    Some(ExecArgs { args, dir, link: start_link() })
}

/// Prints a text. On standard error, ignores errors.
///
/// # Errors
/// Standard output cannot be written: the disk is full, or the pipe is closed.
fn print(stream: Stream, text: &str) -> io::Result<()> {
    match stream {
        Stream::Stdout => {
            let mut stdout = io::stdout();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        }
        Stream::Stderr => {
            let _ = io::stderr().write_all(text.as_bytes());
            Ok(())
        }
    }
}

/// Prints the result of an action. Returns the exit code: 1 if it cannot be printed.
fn print_result(program: &str, text: &str) -> u8 {
    match print(Stream::Stdout, text) {
        Ok(()) => 0,
        Err(error) => {
            print_error(program, &format!("failed to write to standard output: {error}"));
            1
        }
    }
}

fn print_error(program: &str, text: &str) {
    let _ = print(Stream::Stderr, &format!("{program}: {text}\n"));
}
