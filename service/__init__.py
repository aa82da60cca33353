"""What install_wsl_service.sh does: the service and the Windows settings around it. Standard library only, for it runs first."""
