#include "support/child.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>

namespace popnorm_test {
namespace {

std::map<std::string, int (*)(), std::less<>>& roles() {
  static std::map<std::string, int (*)(), std::less<>> all;
  return all;
}

std::string whole(std::FILE* file) {
  std::rewind(file);
  std::string text;
  char chunk[4096];
  std::size_t got = 0;
  while ((got = std::fread(chunk, 1, sizeof chunk, file)) > 0) text.append(chunk, got);
  std::fclose(file);
  return text;
}

}  // namespace

ChildRole::ChildRole(const char* name, int (*role)()) { roles().emplace(name, role); }

int run_child(std::string_view name) {
  const auto found = roles().find(name);
  return found == roles().end() ? 125 : found->second();
}

ChildResult run_in_child(const char* role, const std::vector<std::pair<std::string, std::string>>& environment) {
  std::FILE* out = std::tmpfile();
  std::FILE* err = std::tmpfile();
  if (out == nullptr || err == nullptr) throw std::runtime_error("tmpfile");
  const pid_t pid = fork();
  if (pid < 0) throw std::runtime_error("fork");
  if (pid == 0) {
    // Nothing but what is safe after a fork beside other threads, then a fresh image.
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    dup2(fileno(out), STDOUT_FILENO);
    dup2(fileno(err), STDERR_FILENO);
    execl("/proc/self/exe", "popnorm-child", kChildFlag.data(), role, static_cast<char*>(nullptr));
    _exit(126);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  ChildResult result;
  result.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = whole(out);
  result.err = whole(err);
  return result;
}

}  // namespace popnorm_test
