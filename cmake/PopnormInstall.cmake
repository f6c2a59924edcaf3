# Installs the headers, the library, a CMake package and a pkg-config file. The installed tree may be moved.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/popnorm)
set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(FILES include/popnorm/popnorm.h include/popnorm/popnorm.hpp ${PROJECT_BINARY_DIR}/include/popnorm/version.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/popnorm)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(TARGETS popnorm EXPORT popnormTargets)
install(EXPORT popnormTargets NAMESPACE popnorm:: DESTINATION ${package_dir})

configure_package_config_file(cmake/popnormConfig.cmake.in ${PROJECT_BINARY_DIR}/popnormConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/popnormConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/popnormConfig.cmake ${PROJECT_BINARY_DIR}/popnormConfigVersion.cmake
        DESTINATION ${package_dir})

cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig
           OUTPUT_VARIABLE POPNORM_PC_PREFIX)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_LIBDIR BASE_DIRECTORY ${CMAKE_INSTALL_PREFIX}
           OUTPUT_VARIABLE POPNORM_PC_LIBDIR)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR BASE_DIRECTORY ${CMAKE_INSTALL_PREFIX}
           OUTPUT_VARIABLE POPNORM_PC_INCLUDEDIR)
if(BUILD_SHARED_LIBS)
  set(POPNORM_PC_REQUIRES "")
  set(POPNORM_PC_LIBS "")
  set(POPNORM_PC_CFLAGS "")
else()
  set(POPNORM_PC_REQUIRES "\nRequires: tbb")
  set(POPNORM_PC_LIBS " -lstdc++ -lm")
  set(POPNORM_PC_CFLAGS " -DPOPNORM_STATIC")
endif()
configure_file(cmake/popnorm.pc.in popnorm.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/popnorm.pc DESTINATION ${pkgconfig_dir})
