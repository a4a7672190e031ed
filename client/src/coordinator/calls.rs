//! How calls are made: reads are repeated as they are, mutations under their request id.

use std::sync::{Arc, PoisonError};

use cairn_proto::{ErrorKind, v1};
use cairn_runtime::clock;
use cairn_runtime::telemetry::RequestId;
use tonic::{Response, Status};

use super::{Coordinator, Rpc};
use crate::behind::Pending;
use crate::error::{ClientError, Result};
use crate::metrics;
use crate::retry::{Patience, same_call_may_succeed};
use crate::session::Identity;

/// A call of the service: its name in metrics, and what it is for, in messages for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call(pub(super) &'static str, pub(super) &'static str);

type Answer<T> = std::result::Result<Response<T>, Status>;

impl Coordinator {
    /// A call that changes nothing, or nothing that repeating could spoil. `request` is made anew
    /// for each session.
    pub(super) async fn ask<Req, Res, Fut>(
        &self,
        Call(method, what): Call,
        request: impl Fn(&Identity) -> Req,
        send: impl Fn(Rpc, Req) -> Fut,
    ) -> Result<Res>
    where
        Fut: Future<Output = Answer<Res>>,
    {
        let mut patience = Patience::new(what, self.policy());
        self.ask_patiently(method, &mut patience, request, send).await
    }

    pub(super) async fn ask_patiently<Req, Res, Fut>(
        &self,
        method: &'static str,
        patience: &mut Patience,
        request: impl Fn(&Identity) -> Req,
        send: impl Fn(Rpc, Req) -> Fut,
    ) -> Result<Res>
    where
        Fut: Future<Output = Answer<Res>>,
    {
        let started = clock::now();
        let result = loop {
            let identity = self.shared.session.identity()?;
            match patience.attempt(send(self.shared.rpc.clone(), request(&identity))).await {
                Ok(response) => {
                    self.shared.session.clock.on_answer(response.metadata());
                    break Ok(response.into_inner());
                }
                Err(_) if self.shared.session.has_ended() => break Err(ClientError::Closed),
                Err(error) if same_call_may_succeed(error.kind()) => patience.pause(&error).await?,
                Err(error) if error.kind() == ErrorKind::SessionExpired => {
                    self.shared.session.renewed(identity.session, patience).await?;
                }
                Err(error) => break Err(error),
            }
        };
        metrics::coordinator_call(method, started.elapsed(), result.is_ok());
        result
    }

    /// A mutation: sent again under the same id until it is answered.
    ///
    /// `SessionExpired`: the session ended after the request was sent and before it was answered;
    /// whether it was executed is unknown.
    async fn mutate<Req, Res, Fut>(
        &self,
        Call(method, what): Call,
        request: impl Fn(&Identity, v1::RequestId) -> Req,
        send: impl Fn(Rpc, Req) -> Fut,
    ) -> Result<Res>
    where
        Fut: Future<Output = Answer<Res>>,
    {
        self.mutate_patiently(method, Patience::new(what, self.policy()), request, send).await
    }

    async fn mutate_patiently<Req, Res, Fut>(
        &self,
        method: &'static str,
        mut patience: Patience,
        request: impl Fn(&Identity, v1::RequestId) -> Req,
        send: impl Fn(Rpc, Req) -> Fut,
    ) -> Result<Res>
    where
        Fut: Future<Output = Answer<Res>>,
    {
        let started = clock::now();
        let result = loop {
            match self.mutate_in_session(&mut patience, &request, &send).await {
                Ok(Some(response)) => break Ok(response),
                Ok(None) => {} // refused before it was executed: again, in a new session
                Err(error) => break Err(error),
            }
        };
        metrics::coordinator_call(method, started.elapsed(), result.is_ok());
        result
    }

    /// `None`: the session was over before the request was first sent.
    async fn mutate_in_session<Req, Res, Fut>(
        &self,
        patience: &mut Patience,
        request: &impl Fn(&Identity, v1::RequestId) -> Req,
        send: &impl Fn(Rpc, Req) -> Fut,
    ) -> Result<Option<Res>>
    where
        Fut: Future<Output = Answer<Res>>,
    {
        let session = &self.shared.session;
        let identity = session.identity()?;
        let slot = loop {
            match clock::timeout(patience.try_time(), identity.slots.take()).await {
                Ok(slot) => break slot,
                Err(_) => {
                    let busy = ClientError::new(ErrorKind::Unavailable, "all reply slots wait for answers");
                    patience.pause(&busy).await?;
                }
            }
        };
        let mut slot = slot;
        let mut unanswered = false;
        let mut first_refusal = None;
        loop {
            let message = request(&identity, slot.request_id(identity.session));
            let error = match patience.attempt(send(self.shared.rpc.clone(), message)).await {
                Ok(response) => {
                    slot.executed();
                    session.clock.on_answer(response.metadata());
                    return Ok(Some(response.into_inner()));
                }
                Err(error) => error,
            };
            if session.has_ended() {
                return Err(ClientError::Closed);
            }
            match error.kind() {
                kind if same_call_may_succeed(kind) => {
                    unanswered = true;
                    if let Err(error) = patience.pause(&error).await {
                        self.retire(slot, &identity);
                        return Err(error);
                    }
                }
                ErrorKind::SessionExpired => {
                    session.renewed(identity.session, patience).await?;
                    if unanswered {
                        return Err(ClientError::SessionExpired { what: patience.what() });
                    }
                    return Ok(None);
                }
                // Nothing was executed; perhaps only the sequence was wrong.
                ErrorKind::InvalidArgument if slot.step_back() => first_refusal = Some(error),
                ErrorKind::StaleSequence if first_refusal.is_some() => {
                    slot.step_forward();
                    slot.refused();
                    return Err(first_refusal.unwrap_or(error));
                }
                _ => {
                    slot.refused();
                    return Err(error);
                }
            }
        }
    }

    fn retire(&self, slot: crate::session::slots::Slot, identity: &Identity) {
        drop(slot);
        if identity.slots.is_worn_out() {
            self.shared.session.give_up_on(identity.session);
        }
    }

    /// Runs to the end even when the future that waits for it is dropped.
    pub(super) async fn complete<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let work = RequestId::current().scope(work);
        let task = self.shared.tasks.spawn_on(work, &self.shared.runtime);
        // A task ends early only when the runtime is torn down.
        task.await.unwrap_or(Err(ClientError::Closed))
    }

    /// `Apply`, exactly once.
    pub(super) async fn send_apply(
        &self,
        mutations: Vec<v1::Mutation>,
        credentials: v1::Credentials,
        want_leases: bool,
    ) -> Result<v1::ApplyResponse> {
        let request = |_: &Identity, id| v1::ApplyRequest {
            id: Some(id),
            mutations: mutations.clone(),
            credentials: Some(credentials.clone()),
            want_leases,
            earlier: Vec::new(),
        };
        self.mutate(Call("Apply", "change metadata"), request, |mut rpc, request| async move {
            rpc.apply(request).await
        })
        .await
    }

    /// `Apply` of one `Create` that registers an open with `sequence`, exactly once.
    pub(super) async fn send_create(
        &self,
        create: v1::Create,
        sequence: u64,
        credentials: v1::Credentials,
        want_leases: bool,
    ) -> Result<v1::ApplyResponse> {
        let request = |identity: &Identity, id| {
            let open = v1::OpenRegistration { session: identity.session.to_wire(), sequence };
            let create = v1::Create { open: Some(open), ..create.clone() };
            let op = Some(v1::mutation::Op::Create(create));
            v1::ApplyRequest {
                id: Some(id),
                mutations: vec![v1::Mutation { op, ..v1::Mutation::default() }],
                credentials: Some(credentials.clone()),
                want_leases,
                earlier: Vec::new(),
            }
        };
        self.mutate(Call("Create", "create a file"), request, |mut rpc, request| async move {
            rpc.apply(request).await
        })
        .await
    }

    /// `Apply` of mutations that were performed under leases, as long as it takes: exactly once in each session, and
    /// in another one only when it was not executed under one of the ids in `earlier`, to which this adds.
    ///
    /// `SessionExpired`: whether it was executed is not known; to be called again with the same `earlier`.
    pub(crate) async fn send_behind(
        &self,
        batch: &[Pending],
        earlier: &mut Vec<v1::RequestId>,
    ) -> Result<Vec<v1::MutationResult>> {
        let sent = std::sync::Mutex::new(None);
        let request = |identity: &Identity, id: v1::RequestId| {
            *sent.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.clone());
            let session = identity.session.to_wire();
            v1::ApplyRequest {
                id: Some(id),
                mutations: batch.iter().map(|pending| pending.to_wire(&session)).collect(),
                credentials: None,
                want_leases: false,
                earlier: earlier.clone(),
            }
        };
        let send = |mut rpc: Rpc, request| async move { rpc.apply(request).await };
        let patience = Patience::limited("apply what was done locally", None);
        let answer: Result<v1::ApplyResponse> =
            self.mutate_patiently("ApplyLocal", patience, request, send).await;
        if let Err(ClientError::SessionExpired { .. }) = &answer {
            earlier.extend(sent.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
        let answer = answer?;
        if answer.results.len() != batch.len() {
            let what = format!("{} results for {} mutations", answer.results.len(), batch.len());
            return Err(ClientError::protocol("the coordinator", what));
        }
        Ok(answer.results)
    }

    /// `ConfirmUpload`, exactly once. The caller makes sure that it runs to its end.
    ///
    /// `PlanForeign` also when the session is no longer the one that the chunk ids were granted to.
    pub(crate) async fn confirm(
        &self,
        session: cairn_proto::SessionId,
        chunks: Vec<v1::StoredChunk>,
        files: Vec<v1::FileCommit>,
    ) -> Result<Vec<v1::MutationResult>> {
        let expected = files.len();
        let started = clock::now();
        let request = |_: &Identity, id| v1::ConfirmUploadRequest {
            id: Some(id),
            chunks: chunks.clone(),
            files: files.clone(),
        };
        let same_session = || self.shared.session.identity().map(|now| now.session == session);
        if !same_session()? {
            return Err(ClientError::new(
                ErrorKind::PlanForeign,
                "the chunks were planned by an earlier session",
            ));
        }
        let send = |mut rpc: Rpc, request| async move { rpc.confirm_upload(request).await };
        let answer = self.mutate(Call("ConfirmUpload", "commit file content"), request, send).await?;
        if answer.results.len() != expected {
            let what = format!("{} results for {expected} files", answer.results.len());
            return Err(ClientError::protocol("the coordinator", what));
        }
        metrics::committed(expected, started.elapsed());
        Ok(answer.results)
    }

    /// A plan for `chunks` chunks of any file, with one budget of time.
    pub(crate) async fn plan(
        &self,
        chunks: u32,
        chunk_size: u64,
        exclude: &[cairn_proto::NodeId],
        patience: &mut Patience,
    ) -> Result<(Arc<Identity>, v1::UploadFileResponse)> {
        let planned_for = std::sync::Mutex::new(None);
        let request = |identity: &Identity| {
            *planned_for.lock().unwrap_or_else(PoisonError::into_inner) = Some(identity.session);
            v1::UploadFileRequest {
                session: identity.session.to_wire(),
                inode: 0,
                path: bytes::Bytes::new(),
                bytes: chunk_size,
                chunk_size,
                chunks,
                exclude: exclude.iter().map(|node| node.to_wire()).collect(),
                map_revision: self.shared.map.revision(),
            }
        };
        let send = |mut rpc: Rpc, request| async move { rpc.upload_file(request).await };
        let mut plan: v1::UploadFileResponse =
            self.ask_patiently("UploadFile", patience, request, send).await?;
        self.shared.map.adopt(plan.map.take());
        let identity = self.shared.session.identity()?;
        let for_session = planned_for.into_inner().unwrap_or_else(PoisonError::into_inner);
        if for_session != Some(identity.session) {
            plan.ranges.clear(); // granted to a session that has ended meanwhile
        }
        Ok((identity, plan))
    }
}
