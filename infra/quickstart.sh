#!/usr/bin/env bash
# The whole way on one machine, from plain text to a distilled student: about 6 minutes on 2 cores after installation.
#
# The teacher is a stand-in that is trained here in under two minutes, so that nothing is downloaded. With a network,
# a real one is one line: teacher-cache build infra/quickstart/cache.yaml cache=./bert-cache teacher.model=bert-base-uncased
set -euo pipefail
cd "$(dirname "$0")/.."
. infra/environment.sh
export HF_HUB_OFFLINE=1  # nothing here leaves the machine

step() { printf '\n== %s\n' "$*"; }

rm -rf quickstart
step "English text from Python's own documentation"
python infra/quickstart/english.py quickstart/text
step "A stand-in for a downloaded teacher"
python infra/quickstart/stand_in_teacher.py quickstart/text quickstart/teacher
step "The teacher is asked once: teacher-cache build infra/quickstart/cache.yaml"
teacher-cache build infra/quickstart/cache.yaml
step "A student taught from the cache: student-train run infra/quickstart/student.yaml"
student-train run infra/quickstart/student.yaml
step "The same student untaught: same weights, same batches, no word of the teacher"
student-train run infra/quickstart/student.yaml output=quickstart/students/untaught \
  loss.weights.soft_labels=0 loss.weights.cosine=0
step "A student from random weights, taught"
student-train run infra/quickstart/student.yaml output=quickstart/students/random student.initial_weights=random
step "Compared"
python infra/bench/held_out.py --cache quickstart/cache --text quickstart/text/heldout.txt \
  "teacher (stand-in)=quickstart/teacher" \
  "student, taught from the cache=quickstart/students/taught/model" \
  "same student, untaught=quickstart/students/untaught/model" \
  "student from random weights, taught=quickstart/students/random/model"
step "The students on one page: student-train report quickstart/students"
student-train report quickstart/students --output quickstart/report.html
