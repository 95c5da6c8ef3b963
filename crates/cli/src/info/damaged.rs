//! What can be told of a log that is damaged: its files, and the cursors that can be read.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::units;

/// What the directory shows, without reading any segment.
pub fn text(dir: &Path, json: bool) -> String {
    let files = files(dir);
    let cursors = uringlog::cursors(dir).unwrap_or_default();
    if json {
        let files = files.iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes }));
        let cursors = cursors
            .iter()
            .map(|cursor| json!({ "name": cursor.name, "position": cursor.position.get() }));
        let object = json!({
            "dir": dir.to_string_lossy(),
            "damaged": true,
            "files": Value::from_iter(files),
            "cursors": Value::from_iter(cursors),
            "writer_pid": super::writer(dir),
        });
        return format!("{object}\n");
    }
    let mut text = format!("log            in {}: damaged\n", dir.display());
    for (name, bytes) in files {
        text += &format!("file           {name}, {}\n", units::bytes(bytes));
    }
    for cursor in cursors {
        text += &format!("cursor         {} at {}\n", cursor.name, cursor.position);
    }
    text
}

/// The log's own files and their sizes, by name.
fn files(dir: &Path) -> Vec<(String, u64)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<(String, u64)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let ours = [".seg", ".spare", ".mark", ".cursor"].iter().any(|end| name.ends_with(end));
            ours.then(|| Some((name, entry.metadata().ok()?.len())))?
        })
        .collect();
    files.sort_unstable();
    files
}
