//! A class that works on after its clients have gone.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ostler::Runtime;
use ostler::apps::Demo;
use ostler::settings::Settings;
use ostler::worker::{WorkerClass, WorkerContext, WorkerError};

struct Background;

impl WorkerClass for Background {
    fn name(&self) -> &'static str {
        "background"
    }

    fn threads(&self, _: &Settings) -> usize {
        64
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let mut acceptor = ctx.acceptor();
        ctx.lifecycle().ready();
        thread::scope(|scope| {
            while let Some(mut client) = acceptor.next_client()? {
                client.serve(ctx);
                scope.spawn(|| {
                    let _work = ctx.lifecycle().begin_work("afterwards");
                    thread::sleep(Duration::from_millis(1500));
                });
            }
            Ok(())
        })
    }
}

fn main() -> ExitCode {
    Runtime::new().app(Demo).class(Background).main()
}
