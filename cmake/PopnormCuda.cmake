# Whether the CUDA backend is built: sets POPNORM_CUDA, and enables the language. Included by the top directory, since a language
# that is enabled further down is not fully known.
set(POPNORM_WITH_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (of the top-level project, if there is a CUDA compiler), ON or OFF")
set_property(CACHE POPNORM_WITH_CUDA PROPERTY STRINGS AUTO ON OFF)
set(POPNORM_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 100-real 120
    CACHE STRING "Architectures of the CUDA backend; the last one also as PTX, for later devices")

set(POPNORM_CUDA OFF)
if(POPNORM_WITH_CUDA STREQUAL "OFF" OR POPNORM_SANITIZE OR (POPNORM_WITH_CUDA STREQUAL "AUTO" AND NOT PROJECT_IS_TOP_LEVEL))
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(POPNORM_WITH_CUDA STREQUAL "ON")
    message(FATAL_ERROR "POPNORM_WITH_CUDA is ON, but there is no CUDA compiler. Put nvcc on PATH, or set CUDACXX to it, or "
                        "set POPNORM_WITH_CUDA to OFF.")
  endif()
  message(STATUS "popnorm: no CUDA compiler found, the CUDA backend is left out")
  return()
endif()
enable_language(CUDA)
message(STATUS "popnorm: CUDA backend for ${POPNORM_CUDA_ARCHITECTURES}, by ${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}")
set(POPNORM_CUDA ON)
