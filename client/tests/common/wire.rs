//! The way between one client and the coordinator, in the hands of a test.
#![allow(clippy::disallowed_methods)] // the seams are for the product

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    All,
    /// What the client sends; what it is answered is lost.
    Requests,
    Nothing,
}

/// Passes bytes on, or loses them. A connection that has lost some is broken when all passes again.
pub struct Wire {
    pub address: SocketAddr,
    passes: watch::Sender<Passes>,
    accepts: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

impl Wire {
    pub async fn to(coordinator: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (passes, state) = watch::channel(Passes::All);
        let accepts = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, state) = (coordinator.clone(), state.clone());
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(target).await {
                        connection(client, server, state).await;
                    }
                });
            }
        });
        Ok(Self { address, passes, accepts })
    }

    pub fn set(&self, passes: Passes) {
        self.passes.send_replace(passes);
    }
}

async fn connection(mut client: TcpStream, mut server: TcpStream, mut state: watch::Receiver<Passes>) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    let mut lossy = false;
    loop {
        let passed = tokio::select! {
            read = from_client.read(&mut up) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) if *state.borrow() == Passes::Nothing => { lossy = true; Ok(()) }
                Ok(count) => to_server.write_all(&up[..count]).await,
            },
            read = from_server.read(&mut down) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) if *state.borrow() != Passes::All => { lossy = true; Ok(()) }
                Ok(count) => to_client.write_all(&down[..count]).await,
            },
            changed = state.changed() => match changed {
                Ok(()) if lossy && *state.borrow() == Passes::All => return,
                Ok(()) => Ok(()),
                Err(_) => return,
            },
        };
        if passed.is_err() {
            return;
        }
    }
}
