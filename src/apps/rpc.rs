//! `rpc`: some methods over MessagePack-RPC, for trying out clients and workers.

use std::process;
use std::thread;
use std::time::Duration;

use crate::app::{self, App, BootError, WorkerInfo};
use crate::rpc::{self, Call, Error, ResultWriter};

/// The app `rpc`, over MessagePack-RPC.
///
/// | method | result |
/// |---|---|
/// | `add(a, b)` | the sum of two integers |
/// | `echo(x)` | its argument, of any type |
/// | `sleep(ms)` | nil, after this many milliseconds |
/// | `pid()` | the worker's process id |
#[derive(Clone, Copy, Debug, Default)]
pub struct RpcDemo;

impl App for RpcDemo {
    fn name(&self) -> &str {
        "rpc"
    }

    fn boot(&self, worker: &WorkerInfo) -> Result<Box<dyn app::Service>, BootError> {
        let methods = rpc::Methods::new()
            .method("add", |(a, b): (i64, i64)| a.checked_add(b).ok_or("the sum is too large"))
            .raw_method("echo", echo)
            .method("sleep", |(ms,): (u64,)| {
                thread::sleep(Duration::from_millis(ms));
                Ok::<_, Error>(())
            })
            .method("pid", |()| Ok::<_, Error>(process::id()));
        Ok(Box::new(rpc::Rpc::new(methods, worker)))
    }
}

fn echo(call: &Call<'_>, result: &mut ResultWriter<'_>) -> Result<(), Error> {
    match call.encoded_arguments()? {
        (1, argument) => {
            result.encoded(argument);
            Ok(())
        }
        (count, _) => Err(Error::arguments(format!("expected 1, got {count}"))),
    }
}
