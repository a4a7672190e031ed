//! Datanodes as the place: each holds a copy of every file.
//!
//! An append counts when all members have it; a member that fails is left out from then on, for its copy
//! now lacks something. The shipper begins anew with more members when that can be had.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::v1::meta_log_client::MetaLogClient;
use cairn_proto::{v1, wire_error_of};
use cairn_runtime::{clock, net};
use futures::future::{BoxFuture, join_all};
use tonic::Status;
use tonic::transport::Channel;

use super::super::error::ArchiveError;
use super::{Listed, PIECE};

/// One call to one datanode.
const CALL_TIME: Duration = Duration::from_secs(10);
/// Names in one call.
const NAMES_MAX: usize = 4096;

type Client = MetaLogClient<Channel>;

#[derive(Debug, Clone)]
struct Member {
    address: String,
    client: Client,
}

/// Some datanodes that hold the same files.
#[derive(Debug)]
pub(crate) struct RemotePlace {
    members: Mutex<Vec<Member>>,
}

impl RemotePlace {
    /// Connects when first used.
    pub(crate) fn new(addresses: &[String]) -> Result<Self, ArchiveError> {
        let member = |address: &String| {
            let channel = net::connect(address).map_err(|e| ArchiveError::Unusable(e.to_string()))?;
            let client = MetaLogClient::new(channel)
                .max_decoding_message_size(MESSAGE_SIZE_MAX)
                .max_encoding_message_size(MESSAGE_SIZE_MAX);
            Ok(Member { address: address.clone(), client })
        };
        let members = addresses.iter().map(member).collect::<Result<_, ArchiveError>>()?;
        Ok(Self { members: Mutex::new(members) })
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many datanodes still have everything.
    pub(crate) fn copies(&self) -> usize {
        self.members().len()
    }

    pub(crate) fn describe(&self) -> String {
        let members = self.members();
        let addresses: Vec<_> = members.iter().map(|member| member.address.as_str()).collect();
        format!("datanodes {}", addresses.join(", "))
    }

    /// Asks every member. Those that fail are left out; an error when all fail.
    async fn each<T: Send + 'static>(
        &self,
        what: &str,
        call: impl Fn(Client) -> BoxFuture<'static, Result<T, Status>>,
    ) -> Result<Vec<T>, ArchiveError> {
        let members = self.members().clone();
        let calls: Vec<_> = members.iter().map(|member| in_time(call(member.client.clone()))).collect();
        let answers = join_all(calls).await;
        let (mut good, mut bad, mut why) = (Vec::new(), Vec::new(), "no datanode is left".to_owned());
        for (member, answer) in members.iter().zip(answers) {
            match answer {
                Ok(answer) => good.push(answer),
                Err(error) => {
                    why = format!("datanode {}: {error}", member.address);
                    bad.push(member.address.clone());
                }
            }
        }
        if good.is_empty() {
            return Err(ArchiveError::place("the metadata log on datanodes", what, why));
        }
        if !bad.is_empty() {
            tracing::warn!(what, why, "a datanode no longer takes the metadata log");
            self.members().retain(|member| !bad.contains(&member.address));
        }
        Ok(good)
    }

    /// Files that all members hold alike.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, ArchiveError> {
        let lists = self
            .each("list its files", |mut client| {
                Box::pin(
                    async move { Ok(client.list_logs(v1::ListLogsRequest {}).await?.into_inner().files) },
                )
            })
            .await?;
        let members = lists.len();
        let mut copies: BTreeMap<(String, u64), usize> = BTreeMap::new();
        for file in lists.into_iter().flatten() {
            *copies.entry((file.name, file.length)).or_default() += 1;
        }
        let everywhere = copies.into_iter().filter(|&(_, copies)| copies == members);
        Ok(everywhere.map(|((name, length), _)| Listed { name, length }).collect())
    }

    pub(crate) async fn append(
        &self,
        name: &str,
        offset: u64,
        data: Bytes,
        sync: bool,
    ) -> Result<(), ArchiveError> {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let data = rest.split_to(rest.len().min(4 * PIECE));
            let next = at + data.len() as u64;
            let request = v1::AppendLogRequest {
                name: name.to_owned(),
                offset: at,
                data,
                sync: sync && rest.is_empty(),
            };
            self.each("append to it", |mut client| {
                let request = request.clone();
                Box::pin(async move { client.append_log(request).await.map(drop) })
            })
            .await?;
            at = next;
        }
        Ok(())
    }

    /// From the first member that answers.
    pub(crate) async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, ArchiveError> {
        let request = v1::ReadLogRequest {
            name: name.to_owned(),
            offset,
            length: u32::try_from(length.min(PIECE)).unwrap_or(u32::MAX),
        };
        let mut why = "no datanode is left".to_owned();
        let members = self.members().clone();
        for member in members {
            let mut client = member.client;
            match in_time(client.read_log(request.clone())).await {
                Ok(answer) => return Ok(answer.into_inner().data),
                Err(error) => why = format!("datanode {}: {error}", member.address),
            }
        }
        Err(ArchiveError::place("the metadata log on datanodes", format!("read {name}"), why))
    }

    /// Removes what `unwanted` says, also files that only some members hold.
    pub(crate) async fn remove(&self, unwanted: &(dyn Fn(&str) -> bool + Sync)) -> Result<(), ArchiveError> {
        let failed =
            |error: String| ArchiveError::place("the metadata log on datanodes", "remove old files", error);
        let members = self.members().clone();
        for member in members {
            let mut client = member.client;
            let listed = in_time(client.list_logs(v1::ListLogsRequest {})).await.map_err(failed)?;
            let names = listed.into_inner().files.into_iter().map(|file| file.name);
            let names: Vec<_> = names.filter(|name| unwanted(name)).take(NAMES_MAX).collect();
            if !names.is_empty() {
                in_time(client.remove_logs(v1::RemoveLogsRequest { names })).await.map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// The answer of one call, or a sentence why there is none.
async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, String> {
    match clock::timeout(CALL_TIME, call).await {
        Ok(answer) => answer.map_err(|status| wire_error_of(&status).message),
        Err(_) => Err(format!("no answer within {CALL_TIME:?}")),
    }
}
