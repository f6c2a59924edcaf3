// Whole pages of memory for operands. pages.cpp has the host's; device/pages.cpp has what a GPU reaches too.
#ifndef POPNORM_TESTS_SUPPORT_PAGES_HPP
#define POPNORM_TESTS_SUPPORT_PAGES_HPP

#include <cstddef>

namespace popnorm_test {

enum class Access { none, read, write };

std::size_t page_bytes();

// Throws where there is no more. Writable.
std::byte* take_pages(std::size_t bytes);
void release_pages(std::byte* first, std::size_t bytes);

// From here on other accesses than these are a fault.
void allow(std::byte* first, std::size_t bytes, Access access);

}  // namespace popnorm_test

#endif
