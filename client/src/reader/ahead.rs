//! Which reads are sequential, how far ahead of them to fetch, and what to drop behind them: who reads much
//! one after the other does not come back for it soon, and a kernel keeps what it was given. Several
//! readers of one file are told apart by where they are.

use cairn_proto::ByteRange;

/// Readers of one file that are followed at once.
const STREAMS: usize = 4;
/// Kernels send the reads of one stream from several threads: they arrive this much out of order.
const DISORDER: u64 = 2 << 20;
/// The window of a stream that has just begun.
const WINDOW_MIN: u64 = 512 << 10;
/// What a stream has read stays in the cache until it has read so much; then it goes, in steps of at
/// least the second.
const KEPT_MAX: u64 = 8 << 20;
const DROP_STEP: u64 = 1 << 20;

/// What to do after a read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// To be fetched.
    pub(crate) ahead: Option<ByteRange>,
    /// Not to be kept any more.
    pub(crate) behind: Option<ByteRange>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// Up to where was fetched.
    ahead: u64,
    /// Bytes read one after the other so far.
    run: u64,
    window: u64,
    /// What lies before was dropped, or was not read by this stream.
    kept: u64,
    used: u64,
}

/// The sequential readers of one file.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    streams: Vec<Stream>,
    reads: u64,
}

impl ReadAhead {
    /// Takes note of a read and says what to fetch ahead of it and what to drop behind it. Nothing reaches
    /// past `size`.
    pub(crate) fn on_read(&mut self, offset: u64, len: u64, size: u64, window_max: u64) -> Step {
        if window_max == 0 || len == 0 {
            return Step::default();
        }
        self.reads += 1;
        let end = offset + len;
        let near = |stream: &&mut Stream| {
            offset <= stream.next + DISORDER && offset + DISORDER >= stream.next && stream.window > 0
                || offset == stream.next
        };
        let Some(stream) = self.streams.iter_mut().find(near) else {
            self.begin(offset, end);
            let ahead = (offset == 0).then(|| self.on_first(end, size, window_max)).flatten();
            return Step { ahead, behind: None };
        };
        stream.used = self.reads;
        if end <= stream.next {
            return Step::default();
        }
        stream.run += end - stream.next;
        stream.next = end;
        // Twice what was read already: who has read much will most likely read as much again.
        stream.window = (stream.run * 2).clamp(WINDOW_MIN.min(window_max), window_max);
        Step { ahead: stream.fetch(size), behind: stream.drop_behind() }
    }

    fn begin(&mut self, offset: u64, end: u64) {
        let run = end - offset;
        let stream = Stream { next: end, ahead: end, run, window: 0, kept: offset, used: self.reads };
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.used) {
            *oldest = stream;
        }
    }

    /// A file that is read from its beginning is most likely read to its end.
    fn on_first(&mut self, end: u64, size: u64, window_max: u64) -> Option<ByteRange> {
        let stream = self.streams.iter_mut().find(|stream| stream.next == end && stream.window == 0)?;
        stream.window = WINDOW_MIN.min(window_max);
        stream.fetch(size)
    }

    /// What was said to be fetched was not; it is said again later.
    pub(crate) fn not_fetched(&mut self, range: ByteRange) {
        for stream in &mut self.streams {
            if stream.ahead == range.end() {
                stream.ahead = range.start();
            }
        }
    }
}

impl Stream {
    fn fetch(&mut self, size: u64) -> Option<ByteRange> {
        let start = self.ahead.max(self.next);
        let end = (self.next + self.window).min(size);
        // In large steps, unless the file ends.
        let enough = end.saturating_sub(start) >= self.window / 4 || end == size;
        let range = ByteRange::between(start, end).filter(|_| enough)?;
        self.ahead = end;
        Some(range)
    }

    /// What is so far behind that no read comes late for it.
    fn drop_behind(&mut self) -> Option<ByteRange> {
        let end = self.next.saturating_sub(DISORDER);
        let enough = self.run > KEPT_MAX && end.saturating_sub(self.kept) >= DROP_STEP;
        let range = ByteRange::between(self.kept, end).filter(|_| enough)?;
        self.kept = end;
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;
    const MAX: u64 = 32 << 20;

    #[test]
    fn a_sequential_reader_gets_a_growing_window_without_gaps() {
        let mut ahead = ReadAhead::default();
        let read = 128 << 10;
        let mut fetched = read; // the first read itself
        let mut furthest = 0;
        for index in 0..2000 {
            let offset = index * read;
            if let Some(range) = ahead.on_read(offset, read, SIZE, MAX).ahead {
                assert_eq!(range.start(), fetched.max(offset + read));
                fetched = range.end();
            }
            furthest = furthest.max(fetched.saturating_sub(offset));
        }
        assert!(furthest > MAX / 2 && furthest <= MAX + read, "{furthest}");
    }

    #[test]
    fn random_readers_get_nothing() {
        let mut ahead = ReadAhead::default();
        for index in 1..1000u64 {
            let offset = (index * 7_919_999_983) % SIZE;
            assert_eq!(ahead.on_read(offset, 4096, SIZE, MAX), Step::default());
        }
    }

    #[test]
    fn two_readers_and_disorder_are_still_sequential() {
        let mut ahead = ReadAhead::default();
        let read = 128 << 10;
        let mut ranges = [0u64; 2];
        for index in 0..400u64 {
            let swapped = index ^ 1;
            for (reader, base) in [(0, 0), (1, SIZE / 2)] {
                if let Some(range) = ahead.on_read(base + swapped * read, read, SIZE, MAX).ahead {
                    ranges[reader] = range.end();
                }
            }
        }
        assert!(ranges[0] > 400 * read && ranges[1] > SIZE / 2 + 400 * read, "{ranges:?}");
    }

    #[test]
    fn nothing_past_the_end_and_nothing_when_off() {
        let mut ahead = ReadAhead::default();
        let range = ahead.on_read(0, 4096, 10_000, MAX).ahead.unwrap();
        assert_eq!((range.start(), range.end()), (4096, 10_000));
        assert_eq!(ahead.on_read(4096, 4096, 10_000, MAX), Step::default());
        assert_eq!(ReadAhead::default().on_read(0, 4096, SIZE, 0), Step::default());
    }

    #[test]
    fn behind_a_long_stream_everything_is_dropped_once_and_behind_a_short_one_nothing() {
        let read = 128 << 10;
        let base = SIZE / 2;
        let mut ahead = ReadAhead::default();
        let mut dropped = base;
        for index in 0..1000 {
            let offset = base + index * read;
            let Some(range) = ahead.on_read(offset, read, SIZE, MAX).behind else { continue };
            assert!(offset + read - base > KEPT_MAX, "dropped after {} bytes", offset + read - base);
            assert_eq!(range.start(), dropped, "without gaps");
            assert!(range.len() >= DROP_STEP && range.end() + DISORDER <= offset + read);
            dropped = range.end();
        }
        assert!(dropped + DISORDER + DROP_STEP >= base + 1000 * read, "{dropped}");
    }
}
