//! A client that holds write leases, in the hands of a test: nothing is given back by itself.

use std::time::Duration;

use bytes::Bytes;
use cairn_proto::v1;
use cairn_proto::v1::coordinator_client::CoordinatorClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use v1::session_request::Message;

use super::{Answer, Cluster, dir, listing};

/// Nothing happens for so long where nothing is to happen.
const QUIET: Duration = Duration::from_millis(300);

pub struct Mount {
    pub session: Bytes,
    pub grpc: CoordinatorClient<Channel>,
    requests: mpsc::Sender<v1::SessionRequest>,
    recalls: mpsc::Receiver<v1::Lease>,
    read_recalls: mpsc::Receiver<v1::Lease>,
    stream: JoinHandle<()>,
    sequence: u64,
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.stream.abort();
    }
}

impl Mount {
    pub async fn open(cluster: &Cluster) -> anyhow::Result<Self> {
        Self::connect(cluster, Bytes::new(), &[], 0).await
    }

    /// The same session over a new stream.
    pub async fn resume(&self, cluster: &Cluster, leases: &[u64]) -> anyhow::Result<Self> {
        Self::connect(cluster, self.session.clone(), leases, self.sequence).await
    }

    async fn connect(
        cluster: &Cluster,
        session: Bytes,
        leases: &[u64],
        sequence: u64,
    ) -> anyhow::Result<Self> {
        let mut grpc = cluster.channel()?;
        let (requests, outgoing) = mpsc::channel(16);
        let hello = v1::ClientHello {
            session,
            leases: leases.to_vec(),
            description: "a mount".into(),
            ..v1::ClientHello::default()
        };
        requests.send(v1::SessionRequest { message: Some(Message::Hello(hello)) }).await?;
        let mut answers = grpc.session(ReceiverStream::new(outgoing)).await?.into_inner();
        let first = answers.message().await?.and_then(|answer| answer.message);
        let Some(v1::session_response::Message::Welcome(welcome)) = first else {
            anyhow::bail!("no welcome but {first:?}")
        };
        anyhow::ensure!(welcome.now_ns > 0, "the coordinator tells its time");
        let (asked, recalls) = mpsc::channel(64);
        let (reads_asked, read_recalls) = mpsc::channel(64);
        let beats = requests.clone();
        let stream = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(200)) => {
                        let beat = Message::KeepAlive(v1::KeepAlive::default());
                        if beats.send(v1::SessionRequest { message: Some(beat) }).await.is_err() { break }
                    }
                    answer = answers.message() => match answer {
                        Ok(Some(answer)) => {
                            if let Some(v1::session_response::Message::Recall(recall)) = answer.message {
                                for lease in recall.leases {
                                    let _ = asked.send(lease).await;
                                }
                                for lease in recall.reads {
                                    let _ = reads_asked.send(lease).await;
                                }
                            }
                        }
                        Ok(None) | Err(_) => break,
                    },
                }
            }
        });
        Ok(Self { session: welcome.session, grpc, requests, recalls, read_recalls, stream, sequence })
    }

    /// The connection is gone, without goodbye.
    pub fn break_stream(&mut self) {
        self.stream.abort();
        self.requests = mpsc::channel(1).0;
    }

    pub fn is_connected(&self) -> bool {
        !self.stream.is_finished()
    }

    pub async fn say(&self, message: Message) -> anyhow::Result<()> {
        Ok(self.requests.send(v1::SessionRequest { message: Some(message) }).await?)
    }

    /// The next lease that is asked back.
    pub async fn recalled(&mut self) -> anyhow::Result<v1::Lease> {
        let asked = tokio::time::timeout(Duration::from_secs(10), self.recalls.recv()).await?;
        asked.ok_or_else(|| anyhow::anyhow!("the stream has ended"))
    }

    /// Nothing is asked back for a while.
    pub async fn is_left_alone(&mut self) -> bool {
        tokio::time::timeout(QUIET, self.recalls.recv()).await.is_err()
    }

    pub async fn give_back(&self, lease: v1::Lease) -> anyhow::Result<()> {
        self.say(Message::Released(v1::Released { leases: vec![lease], ..v1::Released::default() })).await
    }

    /// The next read lease that is asked back.
    pub async fn read_recalled(&mut self) -> anyhow::Result<v1::Lease> {
        let asked = tokio::time::timeout(Duration::from_secs(10), self.read_recalls.recv()).await?;
        asked.ok_or_else(|| anyhow::anyhow!("the stream has ended"))
    }

    /// No read lease is asked back for a while.
    pub async fn may_show_on(&mut self) -> bool {
        tokio::time::timeout(QUIET, self.read_recalls.recv()).await.is_err()
    }

    pub async fn give_back_reads(&self, reads: Vec<v1::Lease>) -> anyhow::Result<()> {
        self.say(Message::Released(v1::Released { reads, ..v1::Released::default() })).await
    }

    /// Asks for a whole directory, with read leases where nobody minds, and where the bytes of its files are.
    pub fn listing_leased(&self, inode: u64) -> v1::ReadDirRequest {
        v1::ReadDirRequest { want_leases: true, layouts: true, ..listing(inode, &self.session) }
    }

    /// The answer to that.
    pub async fn list_leased(&self, inode: u64) -> Answer<v1::ReadDirResponse> {
        Ok(self.grpc.clone().read_dir(self.listing_leased(inode)).await?.into_inner())
    }

    pub fn request(&mut self, mutations: Vec<v1::Mutation>, want_leases: bool) -> v1::ApplyRequest {
        self.sequence += 1;
        let (session, sequence) = (self.session.clone(), self.sequence);
        v1::ApplyRequest {
            id: Some(v1::RequestId { session, slot: 5, sequence }),
            mutations,
            credentials: Some(v1::Credentials::default()),
            want_leases,
            ..v1::ApplyRequest::default()
        }
    }

    /// One mutation, with leases where nobody minds.
    pub async fn apply(&mut self, mutation: v1::Mutation) -> Answer<v1::MutationResult> {
        let request = self.request(vec![mutation], true);
        Ok(self.grpc.apply(request).await?.into_inner().results.remove(0))
    }

    /// Makes a directory with a lease; returns that.
    pub async fn mkdir(&mut self, parent: u64, name: &str) -> anyhow::Result<v1::Lease> {
        let mut mutation = dir(parent, name);
        if let Some(v1::mutation::Op::Create(create)) = &mut mutation.op {
            create.lease = true;
        }
        let request = self.request(vec![mutation], false);
        let made = self.grpc.apply(request).await?.into_inner().results.remove(0);
        anyhow::ensure!(made.error == 0, "{}", made.message);
        Ok(made.leases[0])
    }

    /// This mount as one that looks, for another task.
    pub fn reader(&self) -> Reader {
        Reader { session: self.session.clone(), grpc: self.grpc.clone() }
    }

    pub async fn lookup(&self, parent: u64, name: &str) -> Answer<v1::Attr> {
        self.reader().lookup(parent, name).await
    }

    pub async fn get_attr(&self, inode: u64) -> Answer<v1::Attr> {
        self.reader().get_attr(inode).await
    }

    pub async fn list(&self, inode: u64) -> Answer<Vec<String>> {
        self.reader().list(inode).await
    }
}

/// Looks on behalf of a mount.
pub struct Reader {
    session: Bytes,
    grpc: CoordinatorClient<Channel>,
}

impl Reader {
    pub async fn lookup(mut self, parent: u64, name: &str) -> Answer<v1::Attr> {
        let request = v1::LookupRequest {
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
            credentials: Some(v1::Credentials::default()),
            session: self.session,
        };
        Ok(self.grpc.lookup(request).await?.into_inner().attr.unwrap())
    }

    pub async fn get_attr(mut self, inode: u64) -> Answer<v1::Attr> {
        let request = v1::GetAttrRequest { inode, session: self.session };
        Ok(self.grpc.get_attr(request).await?.into_inner().attr.unwrap())
    }

    pub async fn list(mut self, inode: u64) -> Answer<Vec<String>> {
        let page = self.grpc.read_dir(listing(inode, &self.session)).await?.into_inner();
        let entries = cairn_proto::listing::Entries::decode(&page.entries).unwrap();
        Ok(entries.iter().map(|entry| String::from_utf8_lossy(entry.name).into_owned()).collect())
    }
}
