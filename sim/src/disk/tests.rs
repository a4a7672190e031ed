use std::path::Path;

use rand::SeedableRng;

use super::*;

fn disk(seed: u64) -> SimDisk {
    SimDisk::new("disk".into(), 1 << 20, StdRng::seed_from_u64(seed))
}

fn read(disk: &Arc<dyn Disk>, path: &str, len: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; len];
    disk.open(Path::new(path))?.read_at(&mut buffer, 0)?;
    Ok(buffer)
}

#[test]
fn what_was_synced_survives_every_power_cut() {
    for seed in 0..50 {
        let device = disk(seed);
        let mounted = device.mount();
        let file = mounted.create_new(Path::new("d/a")).unwrap();
        file.write_at(&[7; 10_000], 0).unwrap();
        file.sync().unwrap();
        mounted.sync_dir(Path::new("d")).unwrap();
        file.write_at(&[8; 100], 20_000).unwrap();
        device.crash(true);
        assert!(file.write_at(&[9; 10], 0).is_err(), "the process is dead");
        assert_eq!(read(&device.mount(), "d/a", 10_000).unwrap(), vec![7; 10_000]);
    }
}

#[test]
fn what_was_not_synced_is_lost_in_some_cuts_and_torn_in_others() {
    let (mut lost_names, mut lost_bytes, mut torn) = (0, 0, 0);
    for seed in 0..50 {
        let device = disk(seed);
        let mounted = device.mount();
        let file = mounted.create_new(Path::new("a")).unwrap();
        file.allocate(0, 4096).unwrap();
        file.sync().unwrap();
        file.write_at(&[7; 4096], 0).unwrap();
        device.crash(true);
        match read(&device.mount(), "a", 4096) {
            Ok(data) if data.iter().all(|&byte| byte == 0) => lost_bytes += 1,
            Ok(data) if data.contains(&0) => torn += 1,
            Ok(_) => {}
            Err(_) => lost_names += 1,
        }
    }
    assert!(lost_names > 10 && lost_bytes > 2 && torn > 2, "{lost_names} {lost_bytes} {torn}");
}

#[test]
fn a_dead_process_without_a_power_cut_loses_nothing_and_errors_come_as_ordered() {
    let device = disk(1);
    let mounted = device.mount();
    mounted.create_new(Path::new("a")).unwrap().write_at(b"x", 0).unwrap();
    device.crash(false);
    let mounted = device.mount();
    assert_eq!(read(&mounted, "a", 1).unwrap(), b"x");
    device.set_trouble(Trouble { read: 1.0, ..Trouble::default() });
    assert!(read(&mounted, "a", 1).is_err());
    device.set_trouble(Trouble::default());
    let file = mounted.open(Path::new("a")).unwrap();
    assert_eq!(file.allocate(0, 2 << 20).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    let (path, offset) = device.flip_bit("").unwrap();
    assert_eq!((path.as_path(), offset < 4096), (Path::new("a"), true));
}
