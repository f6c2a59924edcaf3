# popnorm_add_isa_tier(<name> <xsimd architecture> <flag>...)
#
# Compiles cpu/isa.cpp for one instruction set into the object library popnorm_isa_<name>, which defines exactly one symbol:
# the table popnorm::cpu::kernels_<name>. Only these files get instruction set flags, so that no other code can come to hold
# an instruction that the machine lacks; tests/abi inspects the objects. No tier has -mfma: a fused product would round
# differently from the other tiers.
function(popnorm_add_isa_tier name arch)
  set(target popnorm_isa_${name})
  add_library(${target} OBJECT cpu/isa.cpp)
  target_compile_definitions(${target} PRIVATE POPNORM_ISA_NAME=${name} "POPNORM_ISA_ARCH=${arch}")
  target_compile_features(${target} PRIVATE cxx_std_20)
  # Without optimization xsimd's constructors become weak symbols that hold this tier's instructions, and the linker may
  # keep them for everybody.
  target_compile_options(
    ${target} PRIVATE ${POPNORM_LIBRARY_WARNINGS} ${ARGN} $<$<NOT:$<CONFIG:Release>>:-O2> -fno-exceptions -fno-rtti
                      ${POPNORM_ARITHMETIC})
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
