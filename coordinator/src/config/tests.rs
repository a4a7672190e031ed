use super::*;

type Change = fn(&mut CoordinatorConfig);

#[test]
fn the_defaults_are_fine() {
    CoordinatorConfig::default().validate().unwrap();
}

#[test]
fn each_bad_setting_is_named_with_what_was_expected() {
    let table: &[(&str, Change)] = &[
        ("listen", |c| c.listen = "nowhere".into()),
        ("listen", |c| c.listen = "host:99999".into()),
        ("listen", |c| c.listen = ":7070".into()),
        ("metrics_listen", |c| c.metrics_listen = Some("x".into())),
        ("data", |c| c.data = PathBuf::new()),
        ("lease", |c| c.lease = Duration::ZERO),
        ("lease", |c| c.lease = Duration::from_secs(3600)),
        ("heartbeat", |c| c.heartbeat = Duration::from_millis(1)),
        ("suspect_after", |c| c.suspect_after = Duration::from_secs(1)),
        ("down_after", |c| c.down_after = Duration::from_secs(2)),
        ("plan_time", |c| c.plan_time = Duration::ZERO),
        ("garbage_grace", |c| c.garbage_grace = Duration::MAX),
        ("replicas", |c| c.replicas = 0),
        ("replicas", |c| c.replicas = 17),
        ("min_replicas", |c| c.min_replicas = 0),
        ("min_replicas", |c| c.min_replicas = 4),
        ("log_ship", |c| c.log_ship = Some(String::new())),
        ("log_ack", |c| c.log_ack = LogAck::Shipped),
        ("log_copies", |c| c.log_copies = 0),
        ("log_copies", |c| c.log_copies = 17),
        ("backup_every", |c| c.backup_every = Duration::from_secs(1)),
        ("backup_keep", |c| c.backup_keep = 0),
        ("memory", |c| c.memory = ByteSize::mib(511)),
        ("chunk_size", |c| c.chunk_size = ByteSize(1)),
        ("chunk_size", |c| c.chunk_size = ByteSize::gib(1)),
    ];
    for (key, change) in table {
        let mut config = CoordinatorConfig::default();
        change(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{key} = ")) && error.contains("expected"), "{error}");
    }
}
