"""What people look at: live displays, tables, contact sheets. Nothing here prints by itself."""
