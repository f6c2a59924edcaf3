# What every target of the project is compiled with.

set(POPNORM_WARNINGS -Wall -Wextra -Wshadow)
set(POPNORM_LIBRARY_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion)
if(POPNORM_WERROR)
  list(APPEND POPNORM_WARNINGS -Werror)
  list(APPEND POPNORM_LIBRARY_WARNINGS -Werror)
endif()

# The reproducibility contract: nothing may fuse, reassociate or approximate, whatever flags the user's build adds before
# these. -fno-fast-math comes first because in Clang it resets the contraction mode. The last two change no result: errno is
# nobody's, and every call masks floating-point exceptions (core/fp_environment.hpp), so conditional divisions may be vectors.
set(POPNORM_ARITHMETIC -fno-fast-math -ffp-contract=off -fno-math-errno -fno-trapping-math)

if(POPNORM_SANITIZE)
  add_compile_options(-fsanitize=${POPNORM_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${POPNORM_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    # No detect_stack_use_after_return in ASAN_OPTIONS: GCC 12 aligns what it then keeps instead of stacks to 32 bytes, where vectors
    # have 64 (GCC bug 110027).
    # Instrumented code of the standard library looks uninitialized to GCC 12 (GCC bug 105562).
    add_compile_options(-Wno-maybe-uninitialized)
  endif()
endif()

if(POPNORM_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(POPNORM_CCACHE_PROGRAM ccache)
  mark_as_advanced(POPNORM_CCACHE_PROGRAM)
  if(POPNORM_CCACHE_PROGRAM)
    set(CMAKE_C_COMPILER_LAUNCHER "${POPNORM_CCACHE_PROGRAM}")
    set(CMAKE_CXX_COMPILER_LAUNCHER "${POPNORM_CCACHE_PROGRAM}")
  endif()
endif()
