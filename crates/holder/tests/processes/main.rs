//! A holder and its workers as processes of their own: this test program, started again, in `roles.rs`.

mod roles;
mod stage;

use std::io::Read;
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use stage::Stage;

#[test]
fn next_worker_has_the_same_connections_and_memory() {
    let stage = Stage::new("next");
    let mut clients: Vec<_> = (0..10).map(|_| stage.connect()).collect();
    let mut counter = 0;
    for round in 0..5 {
        let pid = clients[0].pid();
        for client in &mut clients {
            counter += 1;
            assert_eq!(client.count(), counter, "{round}");
        }
        stage.kill(pid);
        assert_ne!(clients[0].pid(), pid);
    }
    assert_eq!(clients[9].starts(), 5);
    // SIGKILL.
    assert_eq!(clients[9].death(), "Signal(9)");
}

#[test]
fn worker_may_die_after_each_message_that_is_handed_over() {
    let stage = Stage::new("handover");
    let mut clients: Vec<_> = (0..6).map(|_| stage.connect()).collect();
    assert_eq!(clients[3].count(), 1);
    // Each worker dies one message later than the one before, until one gets all of them.
    stage.write("die", "0");
    stage.kill(clients[0].pid());
    for client in &mut clients {
        client.pid();
    }
    // Begin, settings, listener, memory, six connections, complete.
    assert_eq!(clients[0].starts(), 12);
    assert_eq!(clients[5].count(), 2);
}

#[test]
fn client_that_connects_without_a_worker_is_served_by_the_next() {
    let stage = Stage::new("waits");
    let mut first = stage.connect();
    let pid = first.pid();
    // No worker gets as far as to serve.
    stage.write("hold", "");
    stage.kill(pid);
    let mut second = stage.connect();
    second.ask(b'p');
    stage.remove("hold");
    assert_ne!(second.number(), u64::from(pid));
    assert_eq!(first.count(), 1);
    assert_eq!(second.count(), 2);
}

#[test]
fn descriptor_that_was_sent_before_death_is_kept() {
    let stage = Stage::new("kept");
    let mut client = stage.connect();
    assert_eq!(client.asked(b'f'), 0);
    let pid = client.pid();
    client.ask(b'k');
    while stage::is_alive(pid) {
        std::thread::yield_now();
    }
    stage.resume_holder();
    assert_eq!(client.asked(b'f'), 1);
}

#[test]
fn worker_that_closes_its_link_is_replaced() {
    let stage = Stage::new("link");
    let mut client = stage.connect();
    let pid = client.pid();
    client.ask(b'l');
    assert_ne!(client.pid(), pid);
    assert_eq!(client.death(), "LinkClosed");
    assert!(!stage::is_alive(pid));
}

#[test]
fn connection_that_is_dropped_makes_room_for_another() {
    let stage = Stage::new("limit");
    let mut clients: Vec<_> = (0..roles::CONNECTIONS).map(|_| stage.connect()).collect();
    for client in &mut clients {
        client.pid();
    }
    let mut late = stage.connect();
    late.ask(b'p');
    late.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(late.socket.read(&mut [0; 8]).is_err());
    late.socket.set_read_timeout(Some(stage::LIMIT)).unwrap();
    drop(clients.pop());
    late.number();
    assert_eq!(late.count(), 1);
}

#[test]
fn reply_with_a_descriptor_that_is_asked_for_again_is_sent_once() {
    let stage = Stage::new("head");
    let mut client = stage.connect();
    // The worker asks, dies, and the next one asks again.
    client.ask(b's');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut head = [0; 8];
    let mut parts = [std::io::IoSliceMut::new(&mut head)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(&client.socket, &mut parts, &mut control, flags).unwrap();
    let fds = control.drain().map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.count(),
        _ => 0,
    });
    assert_eq!((got.bytes, fds.sum::<usize>()), (8, 1));
    stage.kill(client.pid());
    client.ask(b's');
    // What comes next is the reply to this, not another head.
    let mut head = [0; 8];
    client.socket.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"no more.");
}

#[test]
fn first_worker_that_fails_ends_the_holder_with_its_status() {
    let stage = Stage::unready("fails", &["fail"]);
    assert_eq!(stage.holder_status(), 23);
}

#[test]
fn terminated_holder_ends_after_its_worker() {
    let stage = Stage::new("terminate");
    let pid = stage.connect().pid();
    stage.request(b'T');
    assert_eq!(stage.holder_status(), 1);
    assert!(!stage::is_alive(pid));
}

#[test]
fn worker_that_asked_to_finish_is_the_last() {
    let stage = Stage::new("finish");
    let mut client = stage.connect();
    client.ask(b'q');
    assert_eq!(stage.holder_status(), 5);
}

#[test]
fn connections_survive_another_holder() {
    let stage = Stage::new("replace");
    let mut clients: Vec<_> = (0..5).map(|_| stage.connect()).collect();
    let holder = clients[0].holder();
    assert_eq!(clients[1].count(), 1);
    stage.request(b'R');
    assert_eq!(stage.holder_status(), 0);
    for (client, counter) in clients.iter_mut().zip(2..) {
        assert_eq!(client.count(), counter);
    }
    assert_ne!(clients[0].holder(), holder);
    assert_eq!(clients[0].death(), "Replaced");
    assert_eq!(stage.connect().count(), 7);
}

#[test]
fn holder_goes_on_where_the_next_one_fails() {
    for how in ["exit", "silent"] {
        let stage = Stage::with(how, &["short"]);
        let mut client = stage.connect();
        let (holder, pid) = (client.holder(), client.pid());
        stage.write("successor", how);
        stage.request(b'R');
        // It is asked for until the worker is another one: the old one may answer first.
        while client.pid() == pid {
            std::thread::yield_now();
        }
        assert_eq!(client.holder(), holder);
        assert_eq!(client.count(), 1);
        assert!(stage.log().contains("the holder cannot be replaced"), "{}", stage.log());
    }
}

#[test]
fn hostile_messages_do_not_harm_the_holder() {
    let stage = Stage::new("hostile");
    let mut client = stage.connect();
    let pid = client.pid();
    for _ in 0..20 {
        assert_eq!(client.asked(b'x'), 1);
    }
    assert_eq!(client.pid(), pid);
    assert_eq!(stage.connect().count(), 1);
}
