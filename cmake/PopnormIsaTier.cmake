# popnorm_add_isa_tier(<name> <xsimd architecture> <flag>...)
#
# Compiles cpu/isa_<storage>.cpp for one instruction set into the object library popnorm_isa_<name>, which defines exactly one
# symbol per storage type: the tables popnorm::cpu::kernels_<name>_<storage>. Only these files get instruction set flags, so that no other code can come to hold
# an instruction that the machine lacks; tests/abi inspects the objects. No tier has -mfma: a fused product would round
# differently from the other tiers, unless it is exact (kernels/simd/lanes.hpp).
function(popnorm_add_isa_tier name arch)
  set(target popnorm_isa_${name})
  add_library(${target} OBJECT cpu/isa_f32.cpp cpu/isa_f64.cpp cpu/isa_bf16.cpp cpu/isa_f16.cpp)
  target_compile_definitions(${target} PRIVATE POPNORM_ISA_NAME=${name} "POPNORM_ISA_ARCH=${arch}")
  target_compile_features(${target} PRIVATE cxx_std_20)
  # Without optimization xsimd's constructors become weak symbols that hold this tier's instructions, and the linker may
  # keep them for everybody.
  target_compile_options(
    ${target} PRIVATE ${POPNORM_LIBRARY_WARNINGS} ${ARGN} $<$<NOT:$<CONFIG:Release>>:-O2> -fno-exceptions -fno-rtti
                      ${POPNORM_ARITHMETIC})
  if(POPNORM_SANITIZE)
    # A check at every access of kernels that are one long inlined loop each takes the compiler ten minutes. Access beyond
    # buffers is still found, by AddressSanitizer and by the tests' guard pages.
    target_compile_options(${target} PRIVATE -g1 -fno-sanitize-address-use-after-scope
                                             -fno-sanitize=null,alignment,object-size,pointer-overflow)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC 12 takes its own undefined vectors in <immintrin.h> for a defect (GCC bug 105593).
    target_compile_options(${target} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR} ${POPNORM_PUBLIC_INCLUDES})
  target_link_libraries(${target} PRIVATE xsimd)
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
                                             VISIBILITY_INLINES_HIDDEN ON INTERPROCEDURAL_OPTIMIZATION OFF
                                             CXX_EXTENSIONS OFF)
  set_property(GLOBAL APPEND PROPERTY POPNORM_ISA_TIERS ${name})
endfunction()
