//! A gRPC service with tonic: a call, and a stream that ends when its worker stops. Run it with
//! `cargo run --bin greeter -- -w 2`.

use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use futures_util::{Stream, StreamExt, stream};
use ostler::app::BootError;
use ostler::tokio::{RequestContext, Worker};
use tonic::{Request, Response, Status, service::Routes};

use self::proto::greeter_server::{Greeter, GreeterServer};
use self::proto::{GreetReply, GreetRequest, RepeatRequest};

mod proto {
    tonic::include_proto!("greeter");
}

struct Polite;

#[tonic::async_trait]
impl Greeter for Polite {
    type RepeatStream = Pin<Box<dyn Stream<Item = Result<GreetReply, Status>> + Send>>;

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetReply>, Status> {
        let name = request.into_inner().name;
        if name.is_empty() {
            return Err(Status::invalid_argument("the name is empty"));
        }
        Ok(Response::new(greeting(&name)))
    }

    async fn repeat(
        &self,
        request: Request<RepeatRequest>,
    ) -> Result<Response<Self::RepeatStream>, Status> {
        let context = request.extensions().get::<RequestContext>();
        let shutdown = context.ok_or_else(|| Status::internal("no context"))?.shutdown();
        let RepeatRequest { name, period_ms } = request.into_inner();
        let period = Duration::from_millis(period_ms.max(10).into());
        let greetings = stream::unfold(name, move |name| async move {
            tokio::time::sleep(period).await;
            Some((Ok(greeting(&name)), name))
        });
        // A stream that does not end would be cut off after `graceful_timeout`.
        let greetings = greetings.take_until(async move { shutdown.requested().await });
        Ok(Response::new(greetings.boxed()))
    }
}

fn greeting(name: &str) -> GreetReply {
    GreetReply { text: format!("Hello, {name}!") }
}

async fn open(_worker: Worker) -> Result<Router, BootError> {
    Ok(Routes::new(GreeterServer::new(Polite)).into_axum_router())
}

fn main() -> ExitCode {
    ostler::tokio::main("greeter", open)
}
