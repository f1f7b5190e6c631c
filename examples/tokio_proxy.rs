//! A reverse proxy with hyper: each request goes to another server, and its body and the response's are
//! streamed. Run it with `cargo run --example tokio_proxy -- proxy to=127.0.0.1:9000`.

use std::process::ExitCode;

use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ostler::tokio::{App, Body};
use tower::service_fn;

type BoxBody = axum::body::Body;
type Upstream = Client<HttpConnector, Body>;

async fn forward(
    upstream: Upstream,
    to: Authority,
    mut request: Request<Body>,
) -> Response<BoxBody> {
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(to);
    parts.path_and_query.get_or_insert_with(|| "/".parse().expect("it is a path"));
    *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path are there");
    for hop_by_hop in [header::CONNECTION, header::UPGRADE, header::TE] {
        request.headers_mut().remove(hop_by_hop);
    }
    match upstream.request(request).await {
        Ok(mut response) => {
            response.headers_mut().remove(header::CONNECTION);
            response.map(BoxBody::new)
        }
        Err(error) => {
            let mut response = Response::new(BoxBody::from(format!("{error}\n")));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    }
}

fn main() -> ExitCode {
    let proxy = App::new("proxy", |worker| async move {
        let to: Authority = worker.option("to")?.parse()?;
        let upstream: Upstream = Client::builder(TokioExecutor::new()).build_http();
        Ok(service_fn(move |request| {
            let (upstream, to) = (upstream.clone(), to.clone());
            async move { Ok::<_, std::convert::Infallible>(forward(upstream, to, request).await) }
        }))
    });
    ostler::main(proxy.options(["to"]))
}
