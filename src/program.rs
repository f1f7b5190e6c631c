//! The door of a whole program: from the words of a command line to an exit code.

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use crate::address::Address;
use crate::app::App;
use crate::arbiter::{ExecArgs, upgrade_channel};
use crate::cli::{self, Action, Invocation, Stream};
use crate::os::fd_table::OpenFds;
use crate::os::title::ProcTitle;
use crate::os::{daemon, process};
use crate::runtime::{Runtime, RuntimeError, StartupContext};
use crate::settings::{Configuration, LogTarget, Settings};

/// Runs a program that serves this app: with its command line, YAML files, signals and exit codes.
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

impl Runtime {
    /// Runs the program: reads this process's command line and environment, does what they ask
    /// for, and returns the exit code. 0: asked to stop. 1: bad configuration, address or pid
    /// file. 2: bad command line. 3: no worker was ever ready. 70: a fault of the program.
    pub fn main(self) -> ExitCode {
        let args: Vec<_> = env::args_os().collect();
        let variables: Vec<_> = env::vars_os().collect();
        let context = StartupContext {
            program_fds: OpenFds::snapshot(),
            startup_notifier: None,
            exec_args: exec_args(&args),
            // Without /proc there is no title, and everything else works.
            title: ProcTitle::init().ok(),
        };
        let mut info =
            cli::ProgramInfo { after_help: self.after_help_text(), ..cli::ProgramInfo::default() };
        if let Some(app) = self.default_app() {
            info.default_app = app.to_owned();
        }
        match cli::parse(args, variables, info) {
            Ok(invocation) => ExitCode::from(self.dispatch(&invocation, context)),
            Err(exit) => {
                print(exit.stream, &exit.text);
                ExitCode::from(exit.code)
            }
        }
    }

    fn dispatch(&self, invocation: &Invocation, context: StartupContext) -> u8 {
        if invocation.action == Action::ListClasses {
            let names: Vec<_> = self.class_names().collect();
            print(Stream::Stdout, &format!("{}\n", names.join("\n")));
            return 0;
        }
        let print_warning = |problem: &str| {
            print(Stream::Stderr, &format!("{}: {problem}\n", invocation.program()));
        };
        let report_error = |problem: &dyn std::fmt::Display| {
            upgrade_channel::report_failure(&problem.to_string());
            print(Stream::Stderr, &format!("{}: {problem}\n", invocation.program()));
        };
        let (configuration, warnings) = match invocation.load() {
            Ok(loaded) => loaded,
            Err(error) => {
                report_error(&error);
                return error.exit_code();
            }
        };
        warnings.iter().for_each(|warning| print_warning(warning));
        let result = match invocation.action {
            Action::Run if configuration.master.daemon && !upgrade_channel::is_new_master() => {
                return self.run_daemon(invocation, configuration, context);
            }
            Action::Run if configuration.master.daemon => {
                self.run_from_root_dir(invocation, configuration, context)
            }
            Action::Run => self.run_as(configuration, context, || reload_config(invocation)),
            Action::CheckConfig => self.check(&configuration).map(|()| {
                print(Stream::Stdout, "configuration OK\n");
            }),
            Action::PrintConfig => self.finalize(configuration).map(|configuration| {
                print(Stream::Stdout, &configuration.to_yaml());
            }),
            Action::ListClasses => Ok(()),
        };
        match result {
            Ok(()) => 0,
            Err(error) => {
                report_error(&error);
                error.exit_code()
            }
        }
    }
}

impl Runtime {
    /// Serves as a daemon. This process waits until it is known whether that works.
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
            print(Stream::Stderr, &format!("{}: {text}\n", invocation.program()));
        }
        code
    }
}

impl Runtime {
    /// Serves as a daemon that has left its terminal: from `/`, while paths mean the folder in
    /// which it was started.
    fn run_from_root_dir(
        &self,
        invocation: &Invocation,
        configuration: Configuration,
        context: StartupContext,
    ) -> Result<(), RuntimeError> {
        let start_dir = env::current_dir().map_err(RuntimeError::Os)?;
        let start_dir_fd = File::open(&start_dir).map_err(RuntimeError::Os)?;
        env::set_current_dir("/").map_err(RuntimeError::Os)?;
        self.run_as(with_absolute_paths(configuration, &start_dir), context, || {
            process::change_dir(start_dir_fd.as_fd()).map_err(|error| error.to_string())?;
            let configuration = reload_config(invocation);
            let _ = env::set_current_dir("/");
            configuration.map(|configuration| with_absolute_paths(configuration, &start_dir))
        })
    }
}

/// Reads the settings anew. A variable that means nothing was complained of at the start.
fn reload_config(invocation: &Invocation) -> Result<Configuration, String> {
    invocation.load().map(|(configuration, _)| configuration).map_err(|error| error.to_string())
}

/// The configuration with all paths seen from `home`, for a process whose folder is another.
fn with_absolute_paths(mut configuration: Configuration, base_dir: &Path) -> Configuration {
    let pools = configuration.pools.iter_mut().map(|pool| &mut pool.settings);
    [&mut configuration.master]
        .into_iter()
        .chain(pools)
        .for_each(|it| absolutize_paths(it, base_dir));
    configuration
}

fn absolutize_paths(settings: &mut Settings, base_dir: &Path) {
    let absolutize = |path: &mut PathBuf| *path = base_dir.join(&*path);
    let Settings {
        pidfile,
        chdir,
        worker_tmp_dir,
        log_file,
        flight_recorder_file,
        bind,
        command,
        ..
    } = settings;
    [pidfile, &mut *chdir, worker_tmp_dir, flight_recorder_file]
        .into_iter()
        .flatten()
        .for_each(absolutize);
    if let LogTarget::File(path) = log_file {
        absolutize(path);
    }
    if !command.is_empty() {
        // Its words may be paths too, which only the program knows.
        chdir.get_or_insert_with(|| base_dir.to_path_buf());
    }
    for address in bind {
        if let Address::Unix(path) = address {
            absolutize(path);
        }
    }
}

/// How to start this program again. Without a folder to do that in there is no way.
fn exec_args(args: &[OsString]) -> Option<ExecArgs> {
    let argv = args.iter().map(|arg| CString::new(arg.as_bytes()));
    let words = argv.collect::<Result<Vec<_>, _>>().ok()?;
    let working_dir = File::open(".").ok()?.into();
    Some(ExecArgs { args: words, dir: working_dir })
}

/// Prints; a reader that has gone is no reason to fail.
fn print(stream: Stream, text: &str) {
    let _ = match stream {
        Stream::Stdout => io::stdout().write_all(text.as_bytes()),
        Stream::Stderr => io::stderr().write_all(text.as_bytes()),
    };
}
