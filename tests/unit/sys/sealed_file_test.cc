// Sealed memory files, and files that only this user can have written.
#include "userspace/sys/sealed_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>

#include "userspace/sys/own_file.h"

namespace meltemi::sys {
namespace {

TEST(Sealed, CannotBeChangedByWhoeverHoldsIt) {
  const UniqueFd fd = *seal("test", "secret");
  EXPECT_EQ(read_sealed(fd.get(), 100).value(), "secret");
  EXPECT_EQ(read_sealed(fd.get(), 100).value(), "secret") << "wherever its position is";
  EXPECT_LT(::write(fd.get(), "x", 1), 0);
  EXPECT_LT(::ftruncate(fd.get(), 0), 0);
  EXPECT_LT(::ftruncate(fd.get(), 100), 0);
  EXPECT_EQ(::mmap(nullptr, 6, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0), MAP_FAILED);
  EXPECT_LT(::fcntl(fd.get(), F_ADD_SEALS, 0), 0);
  EXPECT_TRUE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC);
}

TEST(Sealed, WhatIsNotSealedIsRefused) {
  const UniqueFd open(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::write(open.get(), "secret", 6), 6);
  ASSERT_EQ(::fcntl(open.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
  EXPECT_EQ(check_sealed(open.get(), 100).error().reason, Reason::kBadRequest);
  const UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(check_sealed(file.get(), 1 << 30).error().reason, Reason::kBadRequest);
  EXPECT_FALSE(check_sealed(seal("test", "").value().get(), 100));
  EXPECT_FALSE(read_sealed(seal("test", "secret").value().get(), 5));
}

TEST(OwnFile, TellsWhatLiesInMemory) {
  EXPECT_TRUE(is_in_memory("/dev/shm").value());
  EXPECT_FALSE(is_in_memory("/proc").value());
  EXPECT_FALSE(is_in_memory("/nonexistent"));
}

}  // namespace
}  // namespace meltemi::sys
