// Starting, waiting for and finding processes.
#include "userspace/sys/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "userspace/sys/files.h"
#include "tests/support/few_descriptors.h"

namespace meltemi::sys {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(Process, GivesTheExitStatus) {
  auto p = Process::spawn({.argv = {"sh", "-c", "exit 7"}});
  ASSERT_TRUE(p) << p.error().to_string();
  const auto status = p->wait(seconds(30));
  ASSERT_TRUE(status);
  EXPECT_TRUE(WIFEXITED(*status));
  EXPECT_EQ(WEXITSTATUS(*status), 7);
  EXPECT_FALSE(p->valid());
}

TEST(Process, SaysWhyAProgramCannotStart) {
  const auto p = Process::spawn({.argv = {"/nonexistent/program"}});
  ASSERT_FALSE(p);
  EXPECT_NE(p.error().detail.find("No such file"), std::string::npos) << p.error().detail;
}

TEST(Process, RedirectsOutputAndEnvironment) {
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  UniqueFd read_end(fds[0]), write_end(fds[1]);
  auto p = Process::spawn({.argv = {"sh", "-c", "echo $WORD in $(pwd)"},
                           .environment = {"WORD=meltemi", "PATH=/bin:/usr/bin"},
                           .replace_environment = true,
                           .directory = "/tmp",
                           .stdout_fd = write_end.get()});
  ASSERT_TRUE(p);
  write_end.reset();
  ASSERT_TRUE(p->wait(seconds(30)));
  char buffer[100];
  const ssize_t n = ::read(read_end.get(), buffer, sizeof buffer);
  ASSERT_GT(n, 0);
  EXPECT_EQ(std::string(buffer, static_cast<size_t>(n)), "meltemi in /tmp\n");
}

TEST(Process, StopsOneThatIgnoresSigterm) {
  auto p = Process::spawn(
      {.argv = {"sh", "-c", "trap '' TERM; while :; do sleep 1; done"}, .new_session = true});
  ASSERT_TRUE(p);
  const pid_t pid = p->pid();
  EXPECT_EQ(p->wait(milliseconds(10)).error().reason, Reason::kRequestTimeout);
  EXPECT_TRUE(p->stop(milliseconds(50)));
  EXPECT_EQ(::kill(pid, 0), -1);
  EXPECT_TRUE(p->stop(milliseconds(50))) << "stopping twice is no error";
}

TEST(Process, ReportsAFailingPreparation) {
  const auto p = Process::spawn({.argv = {"true"}, .prepare = [] { return EACCES; }});
  ASSERT_FALSE(p);
  EXPECT_NE(p.error().detail.find("ermission denied"), std::string::npos) << p.error().detail;
}

TEST(Process, ListsItselfInItsNamespace) {
  const auto here = Netns::current();
  ASSERT_TRUE(here);
  const auto all = processes_in(*here->id());
  if (!all || all->empty()) GTEST_SKIP() << "no cgroup2 in /proc/self/cgroup";
  const auto me = std::find_if(all->begin(), all->end(),
                               [](const ProcessInfo& p) { return p.pid == ::getpid(); });
  ASSERT_NE(me, all->end());
  EXPECT_EQ(me->command, "sys_process_tes");  // comm has 15 characters
}

// Out of descriptors somebody is not seen. That must not be taken for their end.
TEST(Process, AListThatCannotBeCompleteIsAnError) {
  for (const int left : {0, 1}) {  // /proc itself; the files of a process
    const test::FewDescriptors few(left);
    const auto all = list_processes();
    ASSERT_FALSE(all) << "with " << left << " descriptors: " << all->size();
    EXPECT_EQ(all.error().reason, Reason::kSystem);
    EXPECT_NE(all.error().detail.find("Too many open files"), std::string::npos) << all.error().detail;
  }
  EXPECT_TRUE(list_processes());
}

TEST(Process, OneThatHasEndedIsLeftOut) {
  auto ended = Process::spawn({.argv = {"true"}});
  ASSERT_TRUE(ended);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(ended->pid()), &info, WEXITED | WNOWAIT), 0);  // a zombie
  const auto all = list_processes();
  ASSERT_TRUE(all) << all.error().to_string();
  EXPECT_TRUE(std::ranges::none_of(*all, [&](const auto& p) { return p.pid == ended->pid(); }));
  EXPECT_TRUE(ended->wait(seconds(30)));
}

}  // namespace
}  // namespace meltemi::sys
