# Puts the numbered breaks of rules into a working tree, from its root; FLOTILLA_BREAK=n turns one on. Never to be committed: git checkout takes them out.
import re,sys
def sub(path, old, new, count=1):
    s=open(path).read()
    if old not in s:
        print("NOT FOUND", path, old[:60]); return
    s=s.replace(old,new,count); open(path,'w').write(s)
T='types/src/lib.rs'
s=open(T).read()
s+='''
/// MUTANTS.
pub fn broken(n: u32) -> bool {
    static B: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *B.get_or_init(|| std::env::var("FLOTILLA_BREAK").ok().and_then(|v| v.parse().ok()).unwrap_or(0)) == n
}
'''
open(T,'w').write(s)
B='flotilla_types::broken'
RT='range/src/replica/transact.rs'
sub(RT,"if tells && !matches!(result, Ok(Evaluated::Blocked(_))) {",
 f"if tells && !matches!(result, Ok(Evaluated::Blocked(_))) && !({B}(1) && matches!(op, TxnOp::Prove {{ .. }})) && !({B}(10) && matches!(op, TxnOp::Refresh {{ .. }})) && !({B}(31) && matches!(result, Err(_))) {{")
sub(RT,"let owner = if matches!(op, TxnOp::Prove { .. }) { None }", f"let owner = if matches!(op, TxnOp::Prove {{ .. }}) && !{B}(2) {{ None }}")
OPS='range/src/transact/ops.rs'
sub(OPS,"own.strength == Strength::Intent && own.seq == seq && own.ts <= at)", f"own.strength == Strength::Intent && ({B}(3) || own.seq == seq) && ({B}(4) || own.ts <= at))")
REC='range/src/transact/record.rs'
sub(REC,"if commit_at <= self.marker && staged != Some(commit_at) {", f"if commit_at <= self.marker && staged != Some(commit_at) && !{B}(5) {{")
sub(REC,'''    fn recover(&self, meta: &TxnMeta, at: Timestamp, proven: bool, known: Known) -> Result<Decision, Failed> {
''',f'''    fn recover(&self, meta: &TxnMeta, at: Timestamp, proven: bool, known: Known) -> Result<Decision, Failed> {{
        if {B}(6) && !proven {{
            return self.propose(self.abort(meta, &known), Reply::Ended(Outcome::Aborted));
        }}
''')
AO='kv/src/txn/at_once.rs'
sub(AO,"staged && clock.write == at)", f"staged && ({B}(7) || clock.write == at))")
sub('range/src/transact/resolve.rs',"&& lock.ts <= at", f"&& ({B}(8) || lock.ts <= at)")
sub(REC,"Some(open) if staged(&open).is_some() =>", f"Some(open) if staged(&open).is_some() && !{B}(9) =>")
sub(REC,"_ if expired || wins => self.answer(Reply::Pushed(PushResult::Indeterminate(staged.clone()))),", f"_ if (expired || wins) && {B}(11) => self.abort_for(pushee, known),\n                _ if expired || wins => self.answer(Reply::Pushed(PushResult::Indeterminate(staged.clone()))),")
sub(OPS,"if !meta.is_one_shot() {\n            return Ok(());", f"if !meta.is_one_shot() || {B}(12) {{\n            return Ok(());")
sub(RT,".max(self.read_floor(op, &span, me)).max(", f".max(if {B}(13) {{ Timestamp::ZERO }} else {{ self.read_floor(op, &span, me) }}).max(")
sub(REC,"if let Some(refusal) = Self::done_by_another(meta, &known) {", f"if let Some(refusal) = Self::done_by_another(meta, &known).filter(|_| !{B}(14)) {{")
sub(REC,"let intention_known = !meta.is_one_shot() ||", f"let intention_known = {B}(15) || !meta.is_one_shot() ||")
sub(REC,"        meta.anchored > self.floor()\n", f"        {B}(16) || meta.anchored > self.floor()\n")
sub(REC,"PushKind::Timestamp { above, limit } if staged.at > limit.max(above) => {", f"PushKind::Timestamp {{ above, limit }} if staged.at > limit.max(above) || {B}(17) => {{")
sub(REC,"PushKind::Ask { limit } if staged.at > limit => {", f"PushKind::Ask {{ limit }} if staged.at > limit || {B}(17) => {{")
sub(OPS,"if let Some(first) = blockers.into_iter().next() {", f"if let Some(first) = blockers.into_iter().next().filter(|_| !{B}(18)) {{")
sub(OPS,"if let Some((key, _)) = mvcc::changed_in(self.reader, span, from, to)? {", f"if let Some((key, _)) = mvcc::changed_in(self.reader, span, from, to)?.filter(|_| !{B}(19)) {{")
sub('range/src/transact/whole.rs',"let Some(record) = reader.get(&keys::finished(anchor, id))? else { return Ok(None) };", f"let Some(record) = reader.get(&keys::finished(anchor, id))?.filter(|_| !{B}(20)) else {{ return Ok(None) }};")
OS='kv/src/txn/one_shot.rs'
sub(OS,"if self.held.is_some() && !branch.iter().any(OneShot::writes) {", f"if self.held.is_some() && !branch.iter().any(OneShot::writes) && !{B}(21) {{")
sub('kv/src/send.rs',"if leaves_no_trace(&command, result) =>", f"if leaves_no_trace(&command, result) && !{B}(22) =>")
sub(RT,"if self.transactions.aborted.0.contains(&header.meta.id) &&", f"if !{B}(23) && self.transactions.aborted.0.contains(&header.meta.id) &&")
sub('range/src/replica.rs',"self.transactions.markers.raise_low(self.state.lease.start);", f"if !{B}(25) {{ self.transactions.markers.raise_low(self.state.lease.start); }}")
sub(AO,"let Some(meta) = self.meta.clone().filter(|_| self.staged) else { return Err(error) };", f"let Some(meta) = self.meta.clone().filter(|_| self.staged && !{B}(26)) else {{ return Err(error) }};")
sub(RT,"let read: Vec<&Key> = whole.keys().filter(|key| !writes(key)).collect();\n        if read.is_empty() {", f"let read: Vec<&Key> = whole.keys().filter(|key| !writes(key)).collect();\n        if read.is_empty() || {B}(27) {{")
sub(RT,"if isolation == Isolation::Serializable {", f"if isolation == Isolation::Serializable || {B}(28) {{")
sub(RT,"if op.locks() && header.meta.is_one_shot() {", f"if op.locks() && header.meta.is_one_shot() && !{B}(29) {{")
sub(REC,"open.as_ref().filter(|open| staged(open).is_some_and(|staged| staged.at == at))", f"open.as_ref().filter(|open| staged(open).is_some_and(|staged| {B}(30) || staged.at == at))")
CM='kv/src/txn/commit.rs'
sub(CM,"if self.is_serializable() {\n                self.refresh_to", f"if self.is_serializable() && !{B}(32) {{\n                self.refresh_to")
sub(OPS,"if own.seq > seq { refuse", f"if own.seq > seq && !{B}(33) {{ refuse")
sub(OPS,"        if own.seq == seq || own.history", f"        if {B}(34) {{ return Ok(None); }}\n        if own.seq == seq || own.history")
# second commit of the intention by copies: latch
sub(RT,"vec![(span, if op.locks() { Access::Write } else { Access::Read })]", f"if {B}(35) && matches!(op, TxnOp::Prove {{ .. }}) {{ return Vec::new(); }}\n            vec![(span, if op.locks() {{ Access::Write }} else {{ Access::Read }})]")
sub('kv/src/txn/push.rs',"                proven &= matches!", f"                proven &= {B}(36) || matches!")
sub(REC,"PushKind::Ask { limit } => Ok(Decision::Pass { marker: Timestamp::ZERO, upto: limit }),", "PushKind::Ask { limit } => Ok(Decision::Pass { marker: Timestamp::ZERO, upto: limit }),")
sub(RT,"self.transactions.markers.raise(meta.id, marker);", f"if !{B}(37) {{ self.transactions.markers.raise(meta.id, marker); }}")
sub(REC,"let gives_way = pushee.isolation != Isolation::Serializable || wins;", f"let gives_way = pushee.isolation != Isolation::Serializable || wins || {B}(38) || {B}(39);")
sub(REC,"if commit_at <= self.marker && staged", f"if !{B}(39) && commit_at <= self.marker && staged")
sub('range/src/transact/conflicts.rs',"&& lock.ts <= window.limit\n", f"&& lock.ts <= if {B}(40) {{ window.at }} else {{ window.limit }}\n")
sub('range/src/replica/reads.rs',"        window.limit < self.group.lease_until(ctx)", f"        (if {B}(41) {{ window.at }} else {{ window.limit }}) < self.group.lease_until(ctx)")
# spare: stage may be sent twice under one id / multiple: stage on existing staged overwritten
sub(REC,"EndKind::Stage(_) if staged.is_some() => self.answer(Reply::Staged),", f"EndKind::Stage(_) if staged.is_some() && !{B}(42) => self.answer(Reply::Staged),")
# finish not written with commit of one-shot by recovery
sub(REC,"        if meta.is_one_shot() {\n            edits.push(self.finish(meta, meta.commit_id, outcome, &open.ignored, None));", f"        if meta.is_one_shot() && !{B}(43) {{\n            edits.push(self.finish(meta, meta.commit_id, outcome, &open.ignored, None));")
# commit wait off
sub(CM,"if reading >= target {", f"if reading >= target || {B}(44) {{")
# abort of a record writes no f
sub(REC,"drop.into_iter().chain([self.finish(meta, meta.id.into(), Outcome::Aborted, &[], None)]).collect()", f"drop.into_iter().chain([self.finish(meta, meta.id.into(), Outcome::Aborted, &[], None)].into_iter().filter(|_| !{B}(45))).collect()")
# WriteTooOld ignored for was-read/increment
sub(OPS,"Some(version) if version.timestamp > self.header.read => {", f"Some(version) if version.timestamp > self.header.read && !{B}(46) => {{")
# resolution applies ignored seqs
sub('range/src/transact/resolve.rs',"lock.final_value(ignored)", f"lock.final_value(if {B}(47) {{ &[][..] }} else {{ ignored }})")
# whole in one range ignores locks for reads
