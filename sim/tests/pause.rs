//! What a pause of a machine is, apart from everything that runs on it.

use std::time::Duration;

use cairn_runtime::{clock, sim};

#[tokio::test(start_paused = true)]
async fn what_waits_on_a_paused_machine_goes_on_after_the_pause() {
    sim::name_machine("one");
    let began = clock::now();
    let waits = tokio::spawn(clock::timeout(Duration::from_secs(1), std::future::pending::<()>()));
    sim::pause("one");
    sim::pause("two");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!waits.is_finished());
    sim::resume("one");
    assert!(waits.await.is_ok_and(|ended| ended.is_err()));
    assert_eq!(began.elapsed().as_secs(), 5);
    clock::sleep(Duration::from_secs(1)).await;
    sim::resume("two");
}
