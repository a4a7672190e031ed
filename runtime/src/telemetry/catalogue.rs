//! The metrics of a crate as one table: from it come the constants that code uses, the text that a scraper sees
//! (`# HELP`), and the zeros that counters and histograms show before the first event.

/// Declares the metrics of a crate, and a function `describe` that tells the exporter about them.
///
/// Each line is `KIND NAME = "cairn_…", "help";`. A `counter` shows 0 from the start; one whose label has known values
/// (`counter NAME = "cairn_…" ["label": "one", "other"], "help";`) does so for each of them. So does a `histogram`.
/// `events` and `histogram_events` are those whose labels become known with the first event. They are only described, as
/// a `gauge` is.
#[macro_export]
macro_rules! metric_catalogue {
    ($($kind:ident $name:ident = $text:literal $([$label:literal: $($value:literal),+])?, $help:literal;)*) => {
        $(#[doc = $help] pub(crate) const $name: &str = $text;)*

        /// Tells the exporter what each metric means, and shows counters and histograms before the first event.
        pub(crate) fn describe() {
            $($crate::__describe_metric!($kind, $text, $help $(, $label: $($value),+)?);)*
        }
    };
}

/// One line of [`metric_catalogue!`].
#[doc(hidden)]
#[macro_export]
macro_rules! __describe_metric {
    (counter, $text:literal, $help:literal) => {
        ::metrics::describe_counter!($text, $help);
        ::metrics::counter!($text).increment(0);
    };
    (counter, $text:literal, $help:literal, $label:literal: $($value:literal),+) => {
        ::metrics::describe_counter!($text, $help);
        $(::metrics::counter!($text, $label => $value).increment(0);)+
    };
    (events, $text:literal, $help:literal) => { ::metrics::describe_counter!($text, $help); };
    (gauge, $text:literal, $help:literal) => { ::metrics::describe_gauge!($text, $help); };
    (histogram_events, $text:literal, $help:literal) => { ::metrics::describe_histogram!($text, $help); };
    (histogram, $text:literal, $help:literal) => {
        ::metrics::describe_histogram!($text, $help);
        let _ = ::metrics::histogram!($text);
    };
    (histogram, $text:literal, $help:literal, $label:literal: $($value:literal),+) => {
        ::metrics::describe_histogram!($text, $help);
        $(let _ = ::metrics::histogram!($text, $label => $value);)+
    };
}
