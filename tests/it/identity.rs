//! What workers run as: title, user, directory and environment.

use nix::unistd::{Gid, Group, Uid, User};

use crate::launch::Launch;
use crate::proc::{self, status};
use crate::support::Server;

on_every_class_and_tokio!(process_titles_name_role_and_pool, workers_drop_privileges,);

fn process_titles_name_role_and_pool(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    assert_eq!(proc::title(server.pid), "ostler: master [ostler]");
    for worker in server.wait_workers(2) {
        let expected = format!("ostler: worker [ostler] default/{}", worker.slot);
        assert_eq!(proc::title(worker.pid), expected);
    }
    server.finish();
}

#[test]
fn process_titles_carry_proc_name() {
    let server = Server::start(&["--name", "shop"]);
    assert_eq!(proc::title(server.pid), "ostler: master [shop]");
    assert_eq!(proc::title(server.workers()[0].pid), "ostler: worker [shop] default/0");
    server.finish();
}

fn workers_drop_privileges(class: &str) {
    let (Ok(Some(user)), true) = (User::from_name("nobody"), Uid::effective().is_root()) else {
        eprintln!("skipped: needs root, and a user called nobody");
        return;
    };
    let group = Group::from_gid(user.gid).unwrap().unwrap().name;
    let server = Server::start(&["-k", class, "--user", "nobody", "--group", &group]);
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    let worker = server.workers()[0];
    let all = |id: u32| vec![id.to_string(); 4];
    assert_eq!(status(worker.pid, "Uid"), all(user.uid.as_raw()));
    assert_eq!(status(worker.pid, "Gid"), all(user.gid.as_raw()));
    let groups = status(worker.pid, "Groups");
    assert!(!groups.contains(&"0".to_owned()), "still in root's groups: {groups:?}");
    // The master keeps its own user.
    assert_eq!(status(server.pid, "Uid"), all(Uid::current().as_raw()));
    assert_eq!(status(server.pid, "Gid"), all(Gid::current().as_raw()));
    server.finish();
}

#[test]
fn workers_get_directory_umask_and_environment() {
    let launch = Launch::new(&["--chdir", "/usr", "--umask", "027"]);
    let launch = launch.arg("--env").arg("COLOUR=blue").arg("-e").arg("SHAPE=a=b");
    let server = launch.env("COLOUR", "red").start();
    let worker = server.workers()[0];
    assert_eq!(proc::working_directory(worker.pid).to_str(), Some("/usr"));
    assert_eq!(status(worker.pid, "Umask"), ["0027"]);
    assert_eq!(server.get("/env?name=COLOUR").text().trim(), "blue");
    assert_eq!(server.get("/env?name=SHAPE").text().trim(), "a=b");
    server.finish();
}
