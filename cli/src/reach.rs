//! Reaching a cluster: what a command says while it waits, and what answers at an address that was given wrong.

use std::fmt;
use std::future::Future;
use std::io::Write as _;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::{ErrorKind, v1};
use cairn_runtime::clock::{self, Instant};
use cairn_runtime::net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::failure::{Exit, Failure};
use crate::output::Output;

/// A command that waits longer says what for.
const SAY_AFTER: Duration = Duration::from_secs(2);
/// What answers at an address must do so within this time, twice.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// Does `work`; after two seconds says what is waited for.
pub(crate) async fn saying<T>(
    output: Output,
    what: impl FnOnce() -> String,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    match clock::timeout(SAY_AFTER, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            output.note(what());
            work.await
        }
    }
}

/// Notices about the same command come no more often than this.
const NOTICE_EVERY: Duration = Duration::from_secs(10);

/// Has this person told when an operation of the session waits long.
pub(crate) fn tell_long_waits(output: Output) {
    if !output.quiet {
        cairn_client::on_long_waits(|what| {
            static LAST: Mutex<Option<Instant>> = Mutex::new(None);
            let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_none_or(|last| last.elapsed() >= NOTICE_EVERY) {
                *last = Some(clock::now());
                let _ = writeln!(anstream::stderr(), "cairn: still waiting for the cluster to {what}");
            }
        });
    }
}

/// What is at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Peer {
    /// No connection can be made, for this reason.
    Nobody(String),
    /// It takes connections and says nothing.
    Silent,
    /// It answers to HTTP as browsers speak it: metrics, or another program.
    Http,
    /// A datanode.
    Datanode,
    /// Something else, or a coordinator after all.
    Other,
}

/// The failure of reaching a coordinator at `address`, after looking what is there. `waited`: how long it was tried;
/// `why`: the last error.
pub(crate) async fn unreachable(address: &str, waited: Option<Duration>, why: &str) -> Failure {
    let is_here = "is it running (`cairn up DIR`), and is --coordinator its address?";
    let elsewhere = "give --coordinator the address where the coordinator itself listens for gRPC";
    let within = waited.map_or_else(String::new, |waited| format!(" within {:.1} s", waited.as_secs_f64()));
    let no_answer =
        |why: &str| format!("no answer from the coordinator at {address}{within}: {}", plain(why));
    let wrong = |what: &str| format!("{what} answers at {address}, and no coordinator");
    let (text, next) = match look(address).await {
        Peer::Nobody(why) => (no_answer(&why), is_here),
        Peer::Silent => (no_answer("it takes the connection and says nothing"), is_here),
        Peer::Http => (wrong("an HTTP server, such as that of metrics,"), elsewhere),
        Peer::Datanode => (wrong("a datanode"), elsewhere),
        Peer::Other if why.is_empty() => (wrong("another program"), elsewhere),
        Peer::Other => (no_answer(why), is_here),
    };
    Failure::new("", text).next(next).exit(Exit::Unreachable)
}

/// Whether an error of this kind may mean that something else than a coordinator was asked, or nobody.
pub(crate) fn is_about_reaching(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::NotActive | ErrorKind::Protocol)
}

/// An error of the system without its number, in the middle of a sentence.
pub(crate) fn plain(why: impl fmt::Display) -> String {
    let text = why.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text).trim();
    let mut letters = text.chars();
    let Some(first) = letters.next() else { return String::new() };
    // An abbreviation stays as it is.
    if letters.clone().next().is_some_and(char::is_uppercase) {
        return text.to_owned();
    }
    first.to_lowercase().chain(letters).collect()
}

async fn look(address: &str) -> Peer {
    match clock::timeout(LOOK_LIMIT, greet_http(address)).await {
        Ok(Ok(true)) => return Peer::Http,
        Ok(Ok(false)) => {}
        Ok(Err(error)) => return Peer::Nobody(plain(error)),
        Err(_) => return Peer::Silent,
    }
    let Ok(channel) = net::connect(address) else { return Peer::Other };
    let mut datanode = DataNodeClient::new(channel);
    let nothing = v1::StatChunksRequest { chunks: Vec::new(), verify: false };
    match clock::timeout(LOOK_LIMIT, datanode.stat_chunks(nothing)).await {
        Ok(Ok(_)) => Peer::Datanode,
        Ok(Err(_)) => Peer::Other,
        Err(_) => Peer::Silent,
    }
}

/// Whether an HTTP server of version 1 answers; an error when no connection can be made.
async fn greet_http(address: &str) -> std::io::Result<bool> {
    const MARK: &[u8] = b"HTTP/1.";
    let mut stream = net::reach(address).await?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    if stream.write_all(request.as_bytes()).await.is_err() {
        return Ok(false);
    }
    let mut first = [0; MARK.len()];
    Ok(stream.read_exact(&mut first).await.is_ok() && first == MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_fit_into_a_sentence() {
        assert_eq!(plain("Connection refused (os error 111)"), "connection refused");
        assert_eq!(plain("HTTP/2 is broken"), "HTTP/2 is broken");
        assert_eq!(plain(""), "");
    }

    #[tokio::test]
    async fn what_answers_is_named() {
        let listener = net::listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n").await.unwrap();
        });
        let failure = unreachable(&address, None, "404").await;
        server.await.unwrap();
        assert!(failure.why.contains("an HTTP server") && failure.why.contains(&address), "{failure}");
        assert_eq!(failure.exit, Exit::Unreachable);
        // The listener is gone by now.
        let failure = unreachable(&address, Some(Duration::from_millis(14_635)), "gone").await;
        let text = format!("no answer from the coordinator at {address} within 14.6 s: connection refused; ");
        assert!(failure.to_string().starts_with(&text), "{failure}");
    }
}
