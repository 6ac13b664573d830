//! Runs the commands of the documents, in the order in which a reader would.

mod support;

use support::documents::documents;
use support::{Machine, assert_steps, lab, result, run, scripted, with_debian_program};

#[test]
fn vm_commands_of_the_documents() {
    let mut commands = Vec::new();
    for document in documents() {
        let blocks = document.blocks.iter().filter(|block| block.info == "sh guest");
        let lines: Vec<String> = blocks.flat_map(|block| block.commands()).collect();
        if !lines.is_empty() {
            commands.push(document.name);
            commands.extend(lines);
        }
    }
    assert!(commands.len() > 15, "only {} commands were found", commands.len());
    let file = tempfile::NamedTempFile::new().expect("a file for the commands");
    std::fs::write(file.path(), commands.join("\n") + "\n").expect("it is writable");

    let lab = lab();
    let machine = Machine::V6_12_KPTI_OFF;
    let job = machine.job(&lab, "documents", true).file(file.path(), "/commands");
    let job = ["ls", "pidof", "rmmod"].into_iter().fold(job, |job, name| job.program(name));
    let job =
        ["redis-server", "redis-cli", "redis-benchmark"].into_iter().fold(job, with_debian_program);
    let outcome = run(&lab, &scripted(job, "documents", &[]));
    assert_steps(&outcome, &["all ran".to_owned()]);
    assert!(result(&outcome, "report.html").contains("<html"), "{}", result(&outcome, "output"));
}
