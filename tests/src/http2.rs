//! HTTP/2 by hand, for clients that keep to none of its good manners.

use std::io::Write;
use std::net::TcpStream;

/// How a connection begins.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame of HTTP/2 (RFC 9113, section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a gRPC request, each a literal without indexing (RFC 7541, section 6.2.2).
pub fn headers(method: &str) -> Vec<u8> {
    let path = format!("/cairn.v1.{method}");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", &path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A message of gRPC with its prefix.
pub fn message(payload: &[u8]) -> Vec<u8> {
    [&[0], &(payload.len() as u32).to_be_bytes()[..], payload].concat()
}

/// A connection on which requests are sent, and nothing is ever read: neither answers nor anything else.
pub struct Deaf {
    stream: TcpStream,
    next: u32,
}

impl Deaf {
    /// `window`: bytes of each answer that may be sent to it.
    pub fn connect(address: &str, window: u32) -> Self {
        let mut stream = TcpStream::connect(address).expect("connect");
        let settings = [&[0, 4], &window.to_be_bytes()[..]].concat();
        stream.write_all(&[PREFACE, &frame(4, 0, 0, &settings)].concat()).expect("send");
        Self { stream, next: 1 }
    }

    /// Begins a request with the first bytes of its messages, and ends it or leaves it open. Whether the peer is
    /// still there.
    pub fn request(&mut self, method: &str, data: &[u8], ends: bool) -> bool {
        let stream = self.next;
        self.next += 2;
        let mut bytes = frame(1, 0x4, stream, &headers(method));
        let mut parts = data.chunks(16_000).peekable();
        while let Some(part) = parts.next() {
            let flags = u8::from(ends && parts.peek().is_none());
            bytes.extend(frame(0, flags, stream, part));
        }
        self.stream.write_all(&bytes).is_ok()
    }
}
