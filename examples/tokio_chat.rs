//! A chat over WebSockets. A worker that drains says good-bye to its clients, which connect again to
//! another worker. Run it with `cargo run --example tokio_chat`.

use std::process::ExitCode;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Extension, State};
use axum::response::Response;
use axum::{Router, routing::get};
use ostler::tokio::{RequestContext, Shutdown};
use tokio::sync::broadcast;

type Room = broadcast::Sender<String>;

/// How many messages a slow client may miss.
const MESSAGES_MAX: usize = 256;

async fn join(
    State(room): State<Room>,
    Extension(context): Extension<RequestContext>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade.on_upgrade(move |socket| chat(socket, room, context.shutdown()))
}

async fn chat(mut socket: WebSocket, room: Room, shutdown: Shutdown) {
    let mut messages = room.subscribe();
    loop {
        tokio::select! {
            received = socket.recv() => match received {
                Some(Ok(Message::Text(text))) => {
                    let _ = room.send(text.to_string()); // at least this client listens
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => (),
            },
            message = messages.recv() => {
                let text = message.unwrap_or_else(|_| "(messages were lost)".to_owned());
                if socket.send(Message::Text(text.into())).await.is_err() {
                    return;
                }
            }
            () = shutdown.requested() => {
                let bye = CloseFrame { code: close_code::RESTART, reason: "restart".into() };
                let _ = socket.send(Message::Close(Some(bye))).await;
                return;
            }
        }
    }
}

fn main() -> ExitCode {
    ostler::tokio::main("chat", |_| async {
        let room = Room::new(MESSAGES_MAX);
        Ok(Router::new().route("/", get(join)).with_state(room))
    })
}
