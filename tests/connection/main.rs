//! Connections of every kind to a real server: log-in, TLS, the replication protocol.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test, in its helpers too")]

mod login;
#[path = "../private_server/programs.rs"]
mod programs;
mod replication;
mod server;
mod tls;

use huella::postgres::ConnectOptions;
use tokio_postgres::Client;

fn options(url: &str) -> ConnectOptions {
    ConnectOptions::parse(url, None).unwrap()
}

/// A SQL session of the superuser over the Unix socket.
async fn admin(server: &server::Server) -> Client {
    huella::postgres::connect_sql(&options(&server.socket_url())).await.unwrap()
}

/// The first column of the first row, as text.
async fn one(client: &Client, sql: &str) -> String {
    use tokio_postgres::SimpleQueryMessage::Row;
    let rows = client.simple_query(sql).await.unwrap();
    let cell = rows.iter().find_map(|message| if let Row(row) = message { row.get(0) } else { None });
    cell.unwrap_or_default().to_owned()
}
