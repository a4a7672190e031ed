//! A shelf for the coordinator's backups: files below `metalog/` of the first data directory that are
//! made, appended to, read and removed, and never changed. What is in them is the coordinator's matter;
//! `cairn coordinator restore` reads them through this service or from the directory itself.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cairn_proto::v1::meta_log_server::MetaLog;
use cairn_proto::v1::{
    AppendLogRequest, AppendLogResponse, ListLogsRequest, ListLogsResponse, LogFile, ReadLogRequest,
    ReadLogResponse, RemoveLogsRequest, RemoveLogsResponse,
};
use cairn_proto::{ErrorKind, WireError, status_from};
use cairn_runtime::disk::{Disk, DiskFile, remove_if_present};
use cairn_runtime::threads::Pool;
use tonic::{Request, Response, Status};

/// The directory of the files.
const DIRECTORY: &str = "metalog";
const NAME_MAX: usize = 64;
/// Bytes of one append.
const APPEND_MAX: usize = 4 << 20;
/// Bytes of one read.
const READ_MAX: u32 = 1 << 20;
/// Names in one removal.
const NAMES_MAX: usize = 4096;
/// Requests that may wait for the one thread.
const QUEUE: usize = 64;

/// The service.
#[derive(Clone)]
pub(crate) struct Shelf {
    files: Arc<Mutex<Files>>,
    pool: Pool,
}

struct Files {
    disk: Arc<dyn Disk>,
    /// Room that stays free on the disk.
    reserve: u64,
    /// The file that was appended to last.
    last: Option<(String, Arc<dyn DiskFile>)>,
}

impl Shelf {
    /// Files of `disk`, as long as more than `reserve` is free there.
    pub(crate) fn new(disk: Arc<dyn Disk>, reserve: u64) -> std::io::Result<Self> {
        let files = Files { disk, reserve, last: None };
        Ok(Self { files: Arc::new(Mutex::new(files)), pool: Pool::start("metalog", 1, QUEUE)? })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Files) -> Result<T, WireError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let files = Arc::clone(&self.files);
        let done = self.pool.run(move || work(&mut files.lock().unwrap_or_else(PoisonError::into_inner)));
        match done.await {
            Ok(Ok(answer)) => Ok(Response::new(answer)),
            Ok(Err(error)) => Err(status_from(error.kind, error.message)),
            Err(error) => Err(status_from(error.kind(), error.to_string())),
        }
    }
}

#[tonic::async_trait]
impl MetaLog for Shelf {
    async fn append_log(
        &self,
        request: Request<AppendLogRequest>,
    ) -> Result<Response<AppendLogResponse>, Status> {
        let request = request.into_inner();
        self.run(move |files| files.append(&request)).await
    }

    async fn read_log(&self, request: Request<ReadLogRequest>) -> Result<Response<ReadLogResponse>, Status> {
        let request = request.into_inner();
        self.run(move |files| files.read(&request)).await
    }

    async fn list_logs(&self, _: Request<ListLogsRequest>) -> Result<Response<ListLogsResponse>, Status> {
        self.run(|files| files.list()).await
    }

    async fn remove_logs(
        &self,
        request: Request<RemoveLogsRequest>,
    ) -> Result<Response<RemoveLogsResponse>, Status> {
        let request = request.into_inner();
        self.run(move |files| files.remove(&request.names)).await
    }
}

fn invalid(message: impl Into<String>) -> WireError {
    WireError::new(ErrorKind::InvalidArgument, message)
}

/// Where the file of a name lies; the name alone decides, and it can name nothing else.
fn path(name: &str) -> Result<PathBuf, WireError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let fits = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && name.starts_with(|first: char| first.is_ascii_lowercase());
    match fits {
        true => Ok(Path::new(DIRECTORY).join(name)),
        false => {
            let shown: String = name.chars().take(NAME_MAX).collect();
            Err(invalid(format!(
                "log name {shown:?}: 1 to {NAME_MAX} lower case letters, digits, '-' and '.', a letter first, \
                 were expected"
            )))
        }
    }
}

impl Files {
    fn failed(&self, doing: &str, error: &std::io::Error) -> WireError {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        WireError::new(kind, format!("{}: {doing}: {error}", self.disk.describe()))
    }

    fn append(&mut self, request: &AppendLogRequest) -> Result<AppendLogResponse, WireError> {
        let path = path(&request.name)?;
        if request.data.is_empty() || request.data.len() > APPEND_MAX {
            let size = request.data.len();
            return Err(invalid(format!("{size} bytes to append; 1 to {APPEND_MAX} are possible")));
        }
        let space = self.disk.space().map_err(|error| self.failed("look for room", &error))?;
        let needed = self.reserve.min(space.capacity / 20) + request.data.len() as u64;
        if space.available < needed {
            return Err(WireError::new(ErrorKind::NoSpace, "the disk is full up to its reserve"));
        }
        let known = self.last.take().filter(|(name, _)| *name == request.name && request.offset > 0);
        let file = match (known, request.offset) {
            (Some((_, file)), _) => file,
            (None, 0) => self.make(&path).map_err(|error| self.failed("make a file", &error))?,
            (None, _) => self.disk.open(&path).map_err(|error| self.failed("open a file", &error))?,
        };
        let length = file.len().map_err(|error| self.failed("look at a file", &error))?;
        if length != request.offset {
            return Err(invalid(format!("{} ends at {length}, not at {}", request.name, request.offset)));
        }
        let written = file.write_at(&request.data, length);
        let written = written.and_then(|()| if request.sync { file.sync() } else { Ok(()) });
        // After a failure the file is not kept open: what became of its pages is unknown.
        written.map_err(|error| self.failed("append to a file", &error))?;
        self.last = Some((request.name.clone(), file));
        Ok(AppendLogResponse { length: length + request.data.len() as u64 })
    }

    /// Makes a file anew.
    fn make(&self, path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
        self.disk.create_dir(Path::new(DIRECTORY))?;
        self.disk.sync_dir(Path::new(""))?;
        remove_if_present(&*self.disk, path)?;
        let file = self.disk.create_new(path)?;
        self.disk.sync_dir(Path::new(DIRECTORY))?;
        Ok(file)
    }

    fn read(&self, request: &ReadLogRequest) -> Result<ReadLogResponse, WireError> {
        let path = path(&request.name)?;
        if request.length == 0 || request.length > READ_MAX {
            return Err(invalid(format!("{} bytes to read; 1 to {READ_MAX} are possible", request.length)));
        }
        let failed = |error| self.failed("read a file", &error);
        let file = self.disk.open(&path).map_err(failed)?;
        let left = file.len().map_err(failed)?.saturating_sub(request.offset);
        let mut data = vec![0; usize::try_from(left.min(request.length.into())).unwrap_or_default()];
        file.read_at(&mut data, request.offset).map_err(failed)?;
        Ok(ReadLogResponse { data: data.into() })
    }

    fn list(&self) -> Result<ListLogsResponse, WireError> {
        let names = match self.disk.list(Path::new(DIRECTORY)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(|error| self.failed("list the files", &error))?,
        };
        let mut files = Vec::new();
        for name in names.into_iter().filter_map(|name| name.into_string().ok()) {
            let Ok(path) = path(&name) else { continue };
            let length = self.disk.open(&path).and_then(|file| file.len());
            files.push(LogFile {
                name,
                length: length.map_err(|error| self.failed("look at a file", &error))?,
            });
        }
        Ok(ListLogsResponse { files })
    }

    fn remove(&mut self, names: &[String]) -> Result<RemoveLogsResponse, WireError> {
        if names.len() > NAMES_MAX {
            return Err(invalid(format!("{} names; {NAMES_MAX} are possible", names.len())));
        }
        let paths = names.iter().map(|name| path(name)).collect::<Result<Vec<_>, _>>()?;
        self.last = None;
        for path in paths {
            remove_if_present(&*self.disk, &path).map_err(|error| self.failed("remove a file", &error))?;
        }
        Ok(RemoveLogsResponse {})
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cairn_runtime::disk::RealDisk;

    use super::*;

    fn shelf() -> (tempfile::TempDir, Files) {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
        (directory, Files { disk, reserve: 0, last: None })
    }

    fn append(files: &mut Files, name: &str, offset: u64, data: &'static [u8]) -> Result<u64, ErrorKind> {
        let request =
            AppendLogRequest { name: name.into(), offset, data: Bytes::from_static(data), sync: true };
        files.append(&request).map(|answer| answer.length).map_err(|error| error.kind)
    }

    fn read(files: &Files, name: &str, offset: u64, length: u32) -> Result<Bytes, ErrorKind> {
        let request = ReadLogRequest { name: name.into(), offset, length };
        files.read(&request).map(|answer| answer.data).map_err(|error| error.kind)
    }

    #[test]
    fn what_was_appended_is_read_and_what_was_removed_is_gone() {
        let (_directory, mut files) = shelf();
        assert_eq!(files.list().unwrap().files, []);
        assert_eq!(append(&mut files, "log-1", 0, b"abc"), Ok(3));
        assert_eq!(append(&mut files, "log-2", 0, b"x"), Ok(1));
        assert_eq!(append(&mut files, "log-1", 3, b"def"), Ok(6));
        assert_eq!(read(&files, "log-1", 2, 100).unwrap(), "cdef");
        assert_eq!(read(&files, "log-1", 9, 1).unwrap(), "");
        // From the start: anew.
        assert_eq!(append(&mut files, "log-2", 0, b"yz"), Ok(2));
        let mut listed = files.list().unwrap().files;
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        let listed: Vec<_> = listed.iter().map(|file| (file.name.as_str(), file.length)).collect();
        assert_eq!(listed, [("log-1", 6), ("log-2", 2)]);
        files.remove(&["log-1".into(), "log-9".into()]).unwrap();
        assert_eq!(read(&files, "log-1", 0, 1), Err(ErrorKind::NotFound));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_leaves_nothing() {
        let (directory, mut files) = shelf();
        append(&mut files, "log-1", 0, b"abc").unwrap();
        let long = "a".repeat(NAME_MAX + 1);
        for name in ["", "../x", "/etc/x", "a/b", "A", ".x", "-x", "a\0", long.as_str()] {
            assert_eq!(append(&mut files, name, 0, b"x"), Err(ErrorKind::InvalidArgument), "{name:?}");
            assert_eq!(read(&files, name, 0, 1), Err(ErrorKind::InvalidArgument), "{name:?}");
            assert_eq!(
                files.remove(&[name.into()]).unwrap_err().kind,
                ErrorKind::InvalidArgument,
                "{name:?}"
            );
        }
        for offset in [1, 2, 4, u64::MAX] {
            assert_eq!(
                append(&mut files, "log-1", offset, b"x"),
                Err(ErrorKind::InvalidArgument),
                "{offset}"
            );
        }
        assert_eq!(append(&mut files, "log-2", 1, b"x"), Err(ErrorKind::NotFound));
        assert_eq!(append(&mut files, "log-1", 3, b""), Err(ErrorKind::InvalidArgument));
        assert_eq!(read(&files, "log-1", 0, 0), Err(ErrorKind::InvalidArgument));
        assert_eq!(read(&files, "log-1", 0, READ_MAX + 1), Err(ErrorKind::InvalidArgument));
        assert_eq!(read(&files, "log-1", u64::MAX, 1).unwrap(), "");
        assert_eq!(files.list().unwrap().files.len(), 1);
        let entries = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(entries, 2, "the lock and the shelf");
    }
}
